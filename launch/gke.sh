#!/usr/bin/env bash
# Trains on TPU or GPU nodes of a Kubernetes (GKE) cluster with JobSet; see USAGE.
set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

USAGE='Usage: launch/gke.sh COMMAND [OPTION...] [-- --config.KEY=VALUE...]

  render   print the manifest
  apply    render the manifest and apply it to the cluster
  status   show the JobSet and its Pods
  logs     follow the log of process 0 (--log-slice, --log-process for another)
  delete   stop the training and delete the JobSet

Needs kubectl with access to the cluster, JobSet 0.6 or later and the Cloud Storage FUSE driver in
the cluster, and an image with mmrl (launch/gke/Dockerfile). If a Pod is taken away, the whole
JobSet restarts and resumes from the newest checkpoint in --workdir.'
OPTIONS='
name|name|mmrl|name of the JobSet
namespace|name|default|namespace
config|config||config file, in the image
workdir|bucket||run directory gs://BUCKET/FOLDER, created or resumed
image|word||container image, preferably with its digest
device|tpu/gpu|tpu|accelerator of the nodes
accelerator|word|v5e|TPU: v4, v5e, v5p or v6e; GPU: the node label, for example nvidia-h100-80gb
topology|topology|2x4|TPU: chips of one slice
chips-per-node|1/4/8|4|TPU: chips of one host
slices|count|1|TPU: number of slices
nodes|count|1|GPU: number of nodes
gpus-per-node|count|8|GPU: number of GPUs per node
spot|boolean|false|spot nodes: cheap, can be preempted
service-account|name||Kubernetes service account with access to the bucket
secret|name||Kubernetes Secret whose keys become environment variables of training
max-restarts|whole|100|maximum number of restarts of the JobSet
warning|count|300|seconds between SIGTERM and SIGKILL, for saving; spot nodes give less
log-slice|whole|0|slice, for logs
log-process|whole|0|process of the slice, for logs
'
parse_command 'render apply status logs delete' "$@"
KUBECTL=(kubectl "--namespace=$OPT_NAMESPACE")
SELECT=jobset.sigs.k8s.io/jobset-name=$OPT_NAME

prepare() { # sets OPT_HOSTS, OPT_GKE_ACCELERATOR, OPT_BUCKET and YAML_ARGS
  local factor chips=1 argument
  need config workdir image
  if [ "$OPT_DEVICE" = tpu ]; then
    for factor in ${OPT_TOPOLOGY//x/ }; do chips=$((chips * factor)); done
    [ $((chips % OPT_CHIPS_PER_NODE)) -eq 0 ] ||
      fail "--chips-per-node=$OPT_CHIPS_PER_NODE: expected a divisor of the $chips chips of --topology=$OPT_TOPOLOGY"
    OPT_HOSTS=$((chips / OPT_CHIPS_PER_NODE))
    case $OPT_ACCELERATOR in
      v4) OPT_GKE_ACCELERATOR=tpu-v4-podslice ;;
      v5e) OPT_GKE_ACCELERATOR=tpu-v5-lite-podslice ;;
      v5p) OPT_GKE_ACCELERATOR=tpu-v5p-slice ;;
      v6e) OPT_GKE_ACCELERATOR=tpu-v6e-slice ;;
      *) fail "--accelerator=$OPT_ACCELERATOR: expected one of v4, v5e, v5p, v6e with --device=tpu" ;;
    esac
  elif [[ $OPT_ACCELERATOR != nvidia-* ]]; then
    fail "--accelerator=$OPT_ACCELERATOR: expected nvidia-... with --device=gpu"
  fi
  OPT_BUCKET=${OPT_WORKDIR#gs://}
  OPT_BUCKET=${OPT_BUCKET%%/*}
  YAML_ARGS=''
  for argument in "--config=$OPT_CONFIG" "--workdir=/bucket/${OPT_WORKDIR#gs://*/}" \
    ${TRAIN_ARGUMENTS[@]+"${TRAIN_ARGUMENTS[@]}"}; do
    [[ $argument != *$'\n'* ]] || fail "line break in ${argument%%=*}: expected one line"
    argument=$(printf '%s' "$argument" | sed "s/'/''/g; s/\\\$(/\$\$(/g") # YAML, and Kubernetes' $(...)
    printf -v argument -- "- '%s'\n" "$argument"
    YAML_ARGS+=$argument
  done
}

render() {
  prepare
  export OPT_NAME OPT_IMAGE OPT_SPOT OPT_SECRET OPT_SERVICE_ACCOUNT OPT_MAX_RESTARTS OPT_WARNING \
    OPT_TOPOLOGY OPT_CHIPS_PER_NODE OPT_SLICES OPT_HOSTS OPT_GKE_ACCELERATOR OPT_ACCELERATOR \
    OPT_NODES OPT_GPUS_PER_NODE OPT_BUCKET
  OPT_ARGS=$YAML_ARGS awk '
    /^#/ { next }
    match($0, / # if [A-Z_]+$/) {
      value = ENVIRON["OPT_" substr($0, RSTART + 6)]
      if (value == "" || value == "false") next
      $0 = substr($0, 1, RSTART - 1)
    }
    /^ *@ARGS@$/ {
      count = split(ENVIRON["OPT_ARGS"], lines, "\n")
      for (i = 1; i < count; i++) print substr($0, 1, index($0, "@") - 1) lines[i]
      next
    }
    {
      # Inserts values literally; sub() would interpret "&" in them.
      text = $0
      line = ""
      while (match(text, /@[A-Z_]+@/)) {
        line = line substr(text, 1, RSTART - 1) ENVIRON["OPT_" substr(text, RSTART + 1, RLENGTH - 2)]
        text = substr(text, RSTART + RLENGTH)
      }
      print line text
    }' "$HERE/gke/$OPT_DEVICE.yaml"
}

apply() {
  local manifest name value
  local command=("$HERE/gke.sh" render)
  manifest=$(render)
  if ! "$DRY_RUN"; then
    "${KUBECTL[@]}" apply --filename=- <<<"$manifest"
    return
  fi
  while IFS='|' read -r value name _; do
    case $name in namespace | log-slice | log-process) continue ;; esac
    value=OPT_$value
    [ -z "${!value}" ] || command+=("--$name=${!value}")
  done <<<"$TABLE"
  [ ${#TRAIN_ARGUMENTS[@]} -eq 0 ] || command+=(-- "${TRAIN_ARGUMENTS[@]}")
  printf '%s | %s\n' "$(quote "${command[@]}")" "$(quote "${KUBECTL[@]}" apply --filename=-)"
}

case $COMMAND in
  render) render ;;
  apply) apply ;;
  status)
    run "${KUBECTL[@]}" get jobset "$OPT_NAME"
    run "${KUBECTL[@]}" get pods "--selector=$SELECT" --output=wide
    ;;
  logs)
    run "${KUBECTL[@]}" logs --follow --tail=-1 --container=mmrl \
      "--selector=$SELECT,jobset.sigs.k8s.io/job-index=$OPT_LOG_SLICE,batch.kubernetes.io/job-completion-index=$OPT_LOG_PROCESS"
    ;;
  delete) run "${KUBECTL[@]}" delete jobset "$OPT_NAME" ;;
esac
