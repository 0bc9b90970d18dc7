#!/usr/bin/env bash
# Trains on Cloud TPU VMs obtained through queued resources; see USAGE.
set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

USAGE='Usage: launch/tpu.sh COMMAND [OPTION...] [-- --config.KEY=VALUE...]

  create   request the TPU: one host, a pod slice, or several slices (--slices)
  setup    copy this working tree to all workers and install it there
  run      train on all workers until training is done: creates the TPU if it does not exist, sets
           it up, and starts and watches the workers. After a preemption, creates the TPU again and
           resumes from the newest checkpoint in --workdir. If this command is interrupted, training
           continues; start the same command to watch it again. Use a terminal multiplexer.
  logs     follow the log of one worker (--node, --worker)
  status   show the state of the queued resource and of every worker
  stop     let all workers save and exit
  delete   delete the TPU

Exit status of run: 0 if training is done, 75 if it was preempted more often than --max-restarts,
otherwise the status of training.'
OPTIONS='
name|name|mmrl|name of the queued resource
zone|word||zone, for example europe-west4-b
project|word||project; by default the project of the gcloud configuration
accelerator-type|word||for example v5litepod-8 (one host), v5litepod-256 or v5p-128 (pod slice)
runtime-version|word||TPU software version; by default that of the accelerator type
slices|count|1|number of slices, connected by the data-centre network
spot|boolean|false|spot capacity: cheap, can be preempted
reserved|boolean|false|capacity from a reservation
valid-until|word||maximum time in the queue, for example 6h
service-account|word||service account of the workers, with access to the bucket and the secrets
network|word||network
subnetwork|word||subnetwork
internal-ips|boolean|false|workers without external addresses
connect|external/internal/iap|external|ssh connection to the workers
config|config||config file
workdir|bucket||run directory gs://BUCKET/FOLDER, created or resumed
secrets|secrets||VARIABLE=SECRET_ID,...: environment variables, read from Secret Manager by the workers
max-restarts|whole|100|maximum number of restarts after a preemption
poll|count|30|seconds between two checks of the state
grace|count|300|seconds until the other workers are stopped after the first has exited
delete-when-done|boolean|false|delete the TPU when training is done
node|whole|0|slice, for logs
worker|whole|0|worker of the slice, for logs
'
parse_command 'create setup run logs status stop delete' "$@"
ROOT=$(home "${BASH_SOURCE[0]}")
need zone
WHERE=("--zone=$OPT_ZONE")
[ -z "$OPT_PROJECT" ] || WHERE+=("--project=$OPT_PROJECT")
SSH=(--quiet)
case $OPT_CONNECT in
  internal) SSH+=(--internal-ip) ;;
  iap) SSH+=(--tunnel-through-iap) ;;
esac
ARCHIVE=$ROOT/build/launch/$OPT_NAME.tar.gz
WORKER='mmrl-code/launch/tpu_worker.sh'
QUEUE=(gcloud compute tpus queued-resources)

runtime_version() {
  case $OPT_ACCELERATOR_TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--accelerator-type=$OPT_ACCELERATOR_TYPE: expected v2-N, v3-N, v4-N, v5litepod-N, v5p-N, v6e-N, or --runtime-version=... with it" ;;
  esac
}

create() {
  local version=$OPT_RUNTIME_VERSION command
  need accelerator-type
  [ -n "$version" ] || version=$(runtime_version)
  if "$OPT_SPOT" && "$OPT_RESERVED"; then
    fail '--spot=true --reserved=true: expected at most one of them'
  fi
  command=("${QUEUE[@]}" create "$OPT_NAME" "${WHERE[@]}"
    "--accelerator-type=$OPT_ACCELERATOR_TYPE" "--runtime-version=$version")
  if [ "$OPT_SLICES" -eq 1 ]; then
    command+=("--node-id=$OPT_NAME")
  else
    command+=("--node-count=$OPT_SLICES" "--node-prefix=$OPT_NAME")
  fi
  ! "$OPT_SPOT" || command+=(--spot)
  ! "$OPT_RESERVED" || command+=(--reserved)
  ! "$OPT_INTERNAL_IPS" || command+=(--internal-ips)
  [ -z "$OPT_VALID_UNTIL" ] || command+=("--valid-until-duration=$OPT_VALID_UNTIL")
  [ -z "$OPT_SERVICE_ACCOUNT" ] || command+=("--service-account=$OPT_SERVICE_ACCOUNT")
  [ -z "$OPT_NETWORK" ] || command+=("--network=$OPT_NETWORK")
  [ -z "$OPT_SUBNETWORK" ] || command+=("--subnetwork=$OPT_SUBNETWORK")
  run "${command[@]}" --quiet
}

delete() {
  run "${QUEUE[@]}" delete "$OPT_NAME" "${WHERE[@]}" --force --quiet
}

resource_state() { # DRY_RUN_ANSWER: prints the state of the queued resource, empty if there is none
  ask "$1" "${QUEUE[@]}" list "${WHERE[@]}" "--filter=name~(^|/)$OPT_NAME\$" '--format=value(state.state)'
}

remote() { # COMMAND...: runs it on all workers; fails if it fails on one, or one is unreachable
  run "${QUEUE[@]}" ssh "$OPT_NAME" "${WHERE[@]}" --node=all --worker=all "${SSH[@]}" \
    "--command=$*"
}

worker_states() { # DRY_RUN_ANSWER: prints a line per worker: idle, running, lost or exit STATUS
  local script="if [ -f $WORKER ]; then bash $WORKER state; else echo mmrl-state idle; fi"
  ask "mmrl-state $1" "${QUEUE[@]}" ssh "$OPT_NAME" "${WHERE[@]}" --node=all --worker=all \
    "${SSH[@]}" "--command=$script" | sed -n 's/.*mmrl-state //p'
}

pack() { # packs the working tree once, also for workers that replace preempted ones
  run mkdir -p "$ROOT/build/launch"
  run tar -czf "$ARCHIVE" -C "$ROOT" mmrl configs launch requirements.txt requirements-tpu.txt
}

setup() {
  run "${QUEUE[@]}" scp "$ARCHIVE" "$OPT_NAME:mmrl.tar.gz" "${WHERE[@]}" --node=all --worker=all \
    "${SSH[@]}" &&
    remote "rm -rf mmrl-code && mkdir mmrl-code && tar -xzf mmrl.tar.gz -C mmrl-code && bash $WORKER setup"
}

start() {
  local command=(bash "$WORKER" start "--config=$OPT_CONFIG" "--workdir=$OPT_WORKDIR")
  [ -z "$OPT_SECRETS" ] || command+=("--secrets=$OPT_SECRETS")
  remote "$(quote "${command[@]}" -- ${TRAIN_ARGUMENTS[@]+"${TRAIN_ARGUMENTS[@]}"})"
}

ensure_active() { # waits for the TPU and creates it if it does not exist; sets FRESH if it is new
  local state assumed='' errors=0
  while :; do
    if ! state=$(resource_state "$assumed"); then
      errors=$((errors + 1))
      [ "$errors" -lt 5 ] || fail "gcloud could not read the state of $OPT_NAME $errors times in a row"
      state=unknown
    fi
    case $state in
      ACTIVE) return ;;
      FAILED) fail "queued resource $OPT_NAME is FAILED (out of quota, or too long in the queue); see launch/tpu.sh status, then delete it" ;;
      '' | SUSPENDED)
        [ -z "$state" ] || delete
        create
        FRESH=true
        assumed=ACTIVE
        ;;
      *) say "queued resource $OPT_NAME: $state" ;;
    esac
    run sleep "$OPT_POLL"
  done
}

begin() { # starts all workers, unless all are running
  local states
  states=$(worker_states idle) || return 1
  if [ -n "$states" ] && ! grep -qv '^running' <<<"$states"; then
    say 'training is already running; watching it'
    return
  fi
  if "$FRESH" || grep -q '^idle' <<<"$states"; then
    setup || return 1
    FRESH=false
  fi
  ! grep -q '^running' <<<"$states" || remote "bash $WORKER stop" || return 1
  start
}

watch() { # sets OUTCOME: done, preempted, or the status of a failure
  local states late=0 unreachable=0
  while :; do
    run sleep "$OPT_POLL"
    if ! states=$(worker_states 'exit 0') || [ -z "$states" ]; then
      unreachable=$((unreachable + 1))
      OUTCOME=255
      if lost || [ "$unreachable" -ge 5 ]; then return; fi
      continue
    fi
    unreachable=0
    if grep -q '^running' <<<"$states"; then
      ! grep -qv '^running' <<<"$states" || late=$((late + OPT_POLL))
      [ "$late" -gt "$OPT_GRACE" ] || continue
      say "workers still running $OPT_GRACE seconds after the first exited; stopping them"
      remote "bash $WORKER stop" || true # an unreachable worker is handled through the outcome
      states=$(grep -v '^running' <<<"$states")$'\n'"exit 137"
    fi
    judge "$states"
    return
  done
}

lost() { # succeeds if the TPU is gone, and sets OUTCOME
  local state
  state=$(resource_state ACTIVE) || return 1
  [ "$state" != ACTIVE ] || return 1
  OUTCOME=preempted
}

judge() { # STATES of workers that have exited; sets OUTCOME
  OUTCOME=$(sed -n 's/^exit //p' <<<"$1" | grep -vx -e 0 -e "$PREEMPTED" | head -n 1 || true)
  if grep -q -e "^exit $PREEMPTED\$" -e '^lost' -e '^idle' <<<"$1"; then
    OUTCOME=preempted
  elif [ -z "$OUTCOME" ]; then
    OUTCOME='done'
  else
    lost || true # workers also fail if another one is taken away
  fi
}

attempt() { # starts and watches the workers; sets OUTCOME
  local tries=0
  until begin; do
    ! lost || return 0
    tries=$((tries + 1))
    OUTCOME=255
    [ "$tries" -lt 3 ] || return 0
    say 'the workers could not be started; trying again'
    run sleep "$OPT_POLL"
  done
  watch
}

check_bucket() { # without atomic renaming, an incomplete checkpoint could look complete
  local bucket=${OPT_WORKDIR#gs://} answer
  bucket=gs://${bucket%%/*}
  answer=$(ask True gcloud storage buckets describe "$bucket" \
    '--format=value(hierarchical_namespace.enabled)') || fail "cannot read the properties of $bucket; see above"
  [ "$answer" = True ] ||
    fail "--workdir=$OPT_WORKDIR: expected a bucket created with --enable-hierarchical-namespace, in which renaming a folder is atomic"
}

supervise() {
  local restarts=0
  need config workdir accelerator-type
  check_bucket
  FRESH=true
  trap 'say "no longer watching; training continues: start the same command to watch again, or launch/tpu.sh stop to stop it"; exit 130' INT TERM
  pack
  while :; do
    ensure_active
    attempt
    case $OUTCOME in
      done) break ;;
      preempted)
        if [ "$restarts" -ge "$OPT_MAX_RESTARTS" ]; then
          say "error: preempted again after $restarts restarts, --max-restarts=$OPT_MAX_RESTARTS"
          exit "$PREEMPTED"
        fi
        restarts=$((restarts + 1))
        say "preempted; starting again (restart $restarts of $OPT_MAX_RESTARTS)"
        ;;
      *)
        say "error: training failed with status $OUTCOME (255: workers cannot be reached); see launch/tpu.sh logs"
        exit "$OUTCOME"
        ;;
    esac
  done
  "$DRY_RUN" || say 'training is done'
  ! "$OPT_DELETE_WHEN_DONE" || delete
}

case $COMMAND in
  create) create ;;
  setup)
    pack
    setup
    ;;
  run) supervise ;;
  logs)
    run "${QUEUE[@]}" ssh "$OPT_NAME" "${WHERE[@]}" "--node=$OPT_NODE" "--worker=$OPT_WORKER" \
      "${SSH[@]}" '--command=tail -n 100 -F mmrl-run/log'
    ;;
  status)
    run "${QUEUE[@]}" describe "$OPT_NAME" "${WHERE[@]}" '--format=yaml(name,state,tpu.nodeSpec)'
    remote "bash $WORKER state"
    ;;
  stop) remote "bash $WORKER stop" ;;
  delete) delete ;;
esac
