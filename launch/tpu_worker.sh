#!/usr/bin/env bash
# Runs on every TPU worker, called by launch/tpu.sh; see USAGE.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

USAGE='Usage: launch/tpu_worker.sh COMMAND [OPTION...] [-- --config.KEY=VALUE...]

  setup    install mmrl for TPU into ~/mmrl-venv
  start    train in the background, independent of the ssh connection; log in ~/mmrl-run/log
  train    train in the foreground (start runs this in the background)
  state    print mmrl-state and idle, running, exit STATUS, or lost (the machine was restarted)
  stop     send SIGTERM, so that training saves; send SIGKILL after --grace seconds'
OPTIONS='
config|config||config file
workdir|bucket||run directory gs://BUCKET/FOLDER
secrets|secrets||VARIABLE=SECRET_ID,...: environment variables, read from Secret Manager
grace|count|120|seconds for saving
'
parse_command 'setup start train state stop' "$@"
CODE=$(dirname "$HERE")
VENV=$HOME/mmrl-venv
RUN=$HOME/mmrl-run
MOUNTS=$HOME/mmrl-buckets

setup() {
  local python wanted
  wanted=$(cat "$CODE/requirements.txt" "$CODE/requirements-tpu.txt")
  if [ -f "$VENV/installed" ] && [ "$(cat "$VENV/installed")" = "$wanted" ]; then
    say 'already installed'
    return
  fi
  for python in python3.13 python3.12 python3.11 python3 none; do
    "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
  done
  if [ "$python" = none ]; then # images for v4 to v6e have Python 3.10
    run python3 -m pip install --quiet --user uv==0.13.9
    run python3 -m uv venv --quiet --clear --seed --python=3.12 "$VENV"
  else
    run "$python" -m venv --clear "$VENV"
  fi
  run "$VENV/bin/python" -m pip install --quiet -r "$CODE/requirements-tpu.txt"
  command -v gcsfuse >/dev/null || install_gcsfuse
  "$DRY_RUN" || printf '%s\n' "$wanted" >"$VENV/installed"
}

install_gcsfuse() { # from Google's package archive, verified with the key that is downloaded here
  local key=/usr/share/keyrings/cloud.google.asc archive=https://packages.cloud.google.com/apt
  run sudo curl --fail --silent --show-error --output "$key" "$archive/doc/apt-key.gpg"
  # shellcheck disable=SC2016 # the inner shell expands $1, $2 and the name of the release
  run sudo sh -c 'echo "deb [signed-by=$1] $2 gcsfuse-$(lsb_release -cs) main" >/etc/apt/sources.list.d/gcsfuse.list' sh "$key" "$archive"
  run sudo apt-get update --quiet --quiet
  run sudo apt-get install --quiet --quiet --yes gcsfuse
}

mount_bucket() { # BUCKET: mounts it at $MOUNTS/BUCKET, unless it is mounted
  if mountpoint --quiet "$MOUNTS/$1" 2>/dev/null; then
    return
  fi
  run mkdir -p "$MOUNTS/$1"
  # No metadata cache, because all workers must see what process 0 writes.
  run gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$1" "$MOUNTS/$1"
}

alive() { # whether the process of the last start runs; compares boot ids, as pids are reused
  local pid boot
  [ -f "$RUN/pid" ] || return 1
  read -r pid boot <"$RUN/pid"
  [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] && kill -0 "$pid" 2>/dev/null
}

state() {
  if alive; then
    echo 'mmrl-state running'
  elif [ -f "$RUN/exit" ]; then
    echo "mmrl-state exit $(cat "$RUN/exit")"
  elif [ -f "$RUN/pid" ]; then
    echo 'mmrl-state lost'
  else
    echo 'mmrl-state idle'
  fi
}

start() { # ARGUMENT...: as for train
  if alive; then
    say 'already running'
    return
  fi
  if "$DRY_RUN"; then
    show nohup setsid bash "$HERE/tpu_worker.sh" train "$@"
    return
  fi
  mkdir -p "$RUN"
  rm -f "$RUN/exit"
  # In its own session, training survives the end of the ssh connection but receives SIGTERM at
  # shutdown.
  nohup setsid bash "$HERE/tpu_worker.sh" train "$@" >>"$RUN/log" 2>&1 </dev/null &
  echo "$! $(cat /proc/sys/kernel/random/boot_id)" >"$RUN/pid"
}

train() {
  local pair value status=0
  local pairs=()
  [ -z "$OPT_SECRETS" ] || IFS=, read -r -a pairs <<<"$OPT_SECRETS"
  for pair in ${pairs[@]+"${pairs[@]}"}; do
    value=$(ask '' gcloud secrets versions access latest "--secret=${pair#*=}") || status=$?
    export "${pair%%=*}=$value"
  done
  local path=${OPT_WORKDIR#gs://}
  [ "$status" -ne 0 ] || mount_bucket "${path%%/*}" || status=$?
  # Also on a single host, because jax.distributed provides the notice of a preemption.
  local command=(env MMRL_DISTRIBUTED=auto "$VENV/bin/python" -u -m mmrl.main
    "--config=$OPT_CONFIG" "--workdir=$MOUNTS/$path"
    ${TRAIN_ARGUMENTS[@]+"${TRAIN_ARGUMENTS[@]}"})
  if "$DRY_RUN"; then
    show "${command[@]}"
    return
  fi
  mkdir -p "$RUN"
  if [ "$status" -eq 0 ]; then
    cd "$CODE"
    forward "${command[@]}" || status=$?
  fi
  echo "$status" >"$RUN/exit.new"
  mv "$RUN/exit.new" "$RUN/exit"
  return "$status"
}

stop() {
  local pid boot waited=0
  alive || return 0
  read -r pid boot <"$RUN/pid"
  run kill -TERM "$pid"
  ! "$DRY_RUN" || return 0
  while alive; do
    if [ "$waited" -ge "$OPT_GRACE" ]; then
      say "still running after $OPT_GRACE seconds; killing it"
      kill -KILL -- "-$pid"
      echo 137 >"$RUN/exit"
      return
    fi
    sleep 1
    waited=$((waited + 1))
  done
}

case $COMMAND in
  setup) setup ;;
  start)
    need config workdir
    shift
    start "$@"
    ;;
  train)
    need config workdir
    train
    ;;
  state) state ;;
  stop) stop ;;
esac
