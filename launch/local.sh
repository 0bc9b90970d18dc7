#!/usr/bin/env bash
# Several processes on this machine; see USAGE.
set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

USAGE='Usage: launch/local.sh --config=FILE.py --workdir=DIR [OPTION...] [-- --config.KEY=VALUE...]

Trains with several processes on this machine: on fake CPU devices, or on its GPUs. Every line of
output is prefixed with the number of its process. SIGTERM or Ctrl-C is passed to all processes,
which save and end with status 75; a second one kills them.

Exit status: 0 all are done, 75 they saved and can be started again, else that of the first failure.'
OPTIONS='
config|config||config file
workdir|path||run directory, created or continued
processes|count|2|number of processes
devices|count|1|devices per process
platform|cpu/gpu|cpu|fake CPU devices or the GPUs of this machine
port|port|12355|port of the coordinator on 127.0.0.1
python|path|.venv/bin/python|Python with mmrl installed
module|word|mmrl.main|module that is run
grace|count|30|seconds that the others get to end after one ended badly
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
  fail "--port=$OPT_PORT: expected a free port, but something listens there"
fi

PIPES=$(mktemp -d)
PIDS=()     # of the processes, by number
STATUSES=() # empty while a process runs
PRINTERS=()
STOPS=0  # signals that this launcher got
ENDING=0 # seconds since one ended badly, 0 while none has

signal_all() { # SIGNAL
  local process
  for ((process = 0; process < ${#PIDS[@]}; process++)); do
    [ -n "${STATUSES[process]}" ] || kill "-$1" "${PIDS[process]}" 2>/dev/null || true
  done
}

stop() {
  STOPS=$((STOPS + 1))
  if [ "$STOPS" -eq 1 ]; then
    say "passing SIGTERM to ${#PIDS[@]} processes; they save and end (once more: kill)"
    signal_all TERM
  else
    signal_all KILL
  fi
}

prefixed() { # PROCESS: copies lines; Ctrl-C must not take it away while a process still saves
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

collect() { # notes who has ended; sets RUNNING
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
# A process that was just being started may have missed the signal.
[ "$STOPS" -eq 0 ] || signal_all TERM
while :; do
  collect
  [ "$RUNNING" -gt 0 ] || break
  if [ "$FAILURE" -ne 0 ] || [ "$PREEMPTIONS" -gt 0 ]; then
    # After a failure the others wait for it forever; after a SIGTERM to one all save together.
    [ "$ENDING" -gt 0 ] || [ "$FAILURE" -eq 0 ] || signal_all TERM
    ENDING=$((ENDING + 1))
    if [ "$ENDING" -eq $((OPT_GRACE + 1)) ]; then
      say "error: $RUNNING of $OPT_PROCESSES processes did not end in $OPT_GRACE seconds; killing them"
      signal_all KILL
    fi
  fi
  sleep 1 &
  wait "$!" || true # `wait`, unlike a plain sleep, ends at once when a signal comes
done
for process in "${PRINTERS[@]}"; do
  while kill -0 "$process" 2>/dev/null; do wait "$process" || true; done
done
[ "$FAILURE" -eq 0 ] || exit "$FAILURE"
[ "$PREEMPTIONS" -eq 0 ] || exit "$PREEMPTED"
[ ${#PIDS[@]} -eq "$OPT_PROCESSES" ] || exit "$PREEMPTED" # stopped before all were started
