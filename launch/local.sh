#!/usr/bin/env bash
# Trains with several processes on one machine; see USAGE.
set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

USAGE='Usage: launch/local.sh --config=FILE.py --workdir=DIR [OPTION...] [-- --config.KEY=VALUE...]

Trains with several processes on this machine, on virtual CPU devices or on its GPUs. Each line of
output is prefixed with the number of its process. SIGTERM and Ctrl-C are passed to all processes,
which save and exit with status 75. A second signal kills them.

Exit status: 0 if all processes finished, 75 if they saved and can be resumed, otherwise the status
of the first process that failed.'
OPTIONS='
config|config||config file
workdir|path||run directory, created or resumed
processes|count|2|number of processes
devices|count|1|devices per process
platform|cpu/gpu|cpu|virtual CPU devices or the GPUs of this machine
port|port|12355|port of the coordinator on 127.0.0.1
python|path|.venv/bin/python|Python with mmrl installed
module|word|mmrl.main|module to run
grace|count|30|seconds until the other processes are killed after one has failed
'
parse "$@"
need config workdir

command_of() { # PROCESS: sets COMMAND
  local first=$(($1 * OPT_DEVICES)) id ids='' flags
  COMMAND=(env "MMRL_COORDINATOR=127.0.0.1:$OPT_PORT" "MMRL_NUM_PROCESSES=$OPT_PROCESSES"
    "MMRL_PROCESS_ID=$1")
  if [ "$OPT_PLATFORM" = cpu ]; then
    flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$OPT_DEVICES"
    COMMAND+=(JAX_PLATFORMS=cpu "XLA_FLAGS=$flags")
  else
    for ((id = first; id < first + OPT_DEVICES; id++)); do ids+=${ids:+,}$id; done
    COMMAND+=("CUDA_VISIBLE_DEVICES=$ids")
  fi
  COMMAND+=("$OPT_PYTHON" -u -m "$OPT_MODULE" "--config=$OPT_CONFIG" "--workdir=$OPT_WORKDIR"
    ${TRAIN_ARGUMENTS[@]+"${TRAIN_ARGUMENTS[@]}"})
}

if "$DRY_RUN"; then
  for ((process = 0; process < OPT_PROCESSES; process++)); do
    command_of "$process"
    show "${COMMAND[@]}"
  done
  exit 0
fi
if (exec 4<>"/dev/tcp/127.0.0.1/$OPT_PORT") 2>/dev/null; then
  fail "--port=$OPT_PORT: the port is in use; choose another one"
fi

PIPES=$(mktemp -d)
PIDS=()     # process ids, by number of the process
STATUSES=() # exit statuses; empty while a process runs
PRINTERS=()
STOPS=0  # number of signals received
ENDING=0 # seconds since a process failed or was preempted; 0 before

signal_all() { # SIGNAL
  local process
  for ((process = 0; process < ${#PIDS[@]}; process++)); do
    [ -n "${STATUSES[process]}" ] || kill "-$1" "${PIDS[process]}" 2>/dev/null || true
  done
}

stop() {
  STOPS=$((STOPS + 1))
  if [ "$STOPS" -eq 1 ]; then
    say "passing SIGTERM to ${#PIDS[@]} processes; they save and exit (a second signal kills them)"
    signal_all TERM
  else
    signal_all KILL
  fi
}

prefixed() { # PROCESS: copies lines with a prefix; ignores Ctrl-C, as the process may still save
  trap '' INT TERM HUP
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

start() { # PROCESS
  local out="$PIPES/$1.out" error="$PIPES/$1.error"
  mkfifo "$out" "$error"
  prefixed "$1" <"$out" &
  PRINTERS+=("$!")
  prefixed "$1" <"$error" >&2 &
  PRINTERS+=("$!")
  command_of "$1"
  STATUSES+=('')
  "${COMMAND[@]}" </dev/null >"$out" 2>"$error" &
  PIDS+=("$!")
}

collect() { # records the status of processes that have exited; sets RUNNING
  local process status
  RUNNING=0
  for ((process = 0; process < ${#PIDS[@]}; process++)); do
    [ -z "${STATUSES[process]}" ] || continue
    if kill -0 "${PIDS[process]}" 2>/dev/null; then
      RUNNING=$((RUNNING + 1))
      continue
    fi
    status=0
    wait "${PIDS[process]}" || status=$?
    STATUSES[process]=$status
    [ "$status" -ne "$PREEMPTED" ] || PREEMPTIONS=$((PREEMPTIONS + 1))
    if [ "$status" -ne 0 ] && [ "$status" -ne "$PREEMPTED" ] && [ "$FAILURE" -eq 0 ]; then
      FAILURE=$status
      say "error: process $process ended with status $status"
    fi
  done
}

FAILURE=0
PREEMPTIONS=0
RUNNING=$OPT_PROCESSES
trap stop INT TERM
trap 'signal_all KILL; rm -rf "$PIPES"' EXIT
while [ ${#PIDS[@]} -lt "$OPT_PROCESSES" ] && [ "$STOPS" -eq 0 ]; do start "${#PIDS[@]}"; done
# A process that was being started may have missed the signal.
[ "$STOPS" -eq 0 ] || signal_all TERM
while :; do
  collect
  [ "$RUNNING" -gt 0 ] || break
  if [ "$FAILURE" -ne 0 ] || [ "$PREEMPTIONS" -gt 0 ]; then
    # If a process fails, the others would wait for it forever. If one received SIGTERM, all save.
    [ "$ENDING" -gt 0 ] || [ "$FAILURE" -eq 0 ] || signal_all TERM
    ENDING=$((ENDING + 1))
    if [ "$ENDING" -eq $((OPT_GRACE + 1)) ]; then
      say "error: $RUNNING of $OPT_PROCESSES processes did not exit in $OPT_GRACE seconds; killing them"
      signal_all KILL
    fi
  fi
  sleep 1 &
  wait "$!" || true # unlike sleep, `wait` returns at once when a signal arrives
done
for process in "${PRINTERS[@]}"; do
  while kill -0 "$process" 2>/dev/null; do wait "$process" || true; done
done
[ "$FAILURE" -eq 0 ] || exit "$FAILURE"
[ "$PREEMPTIONS" -eq 0 ] || exit "$PREEMPTED"
[ ${#PIDS[@]} -eq "$OPT_PROCESSES" ] || exit "$PREEMPTED" # stopped before all were started
