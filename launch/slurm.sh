#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster; see USAGE.
set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

USAGE='Usage: launch/slurm.sh COMMAND [OPTION...] [-- --config.KEY=VALUE...]

  submit   queue the training (--config, --workdir on a file system that all nodes share)
  status   show the state of the job in the queue
  logs     follow the log (--job=ID, the id that submit printed)
  cancel   end the job for good

Before the time limit, and at preemption, all Python processes receive SIGTERM and save the same
step. The job is then queued again and resumes from there. Settings without an option here can be
made with the variables of sbatch, such as SBATCH_RESERVATION.'
OPTIONS='
config|config||config file
workdir|path||run directory, created or resumed
name|name|mmrl|name of the job
job|count||id of the job, for logs
nodes|count|1|number of nodes
gpus-per-node|count|8|number of GPUs per node
processes|gpu/node|gpu|one process per GPU, or one process per node that uses all its GPUs
cpus-per-process|count|8|CPU cores of each process
time|time|24:00:00|time limit of one allocation
warning|count|300|seconds before the time limit at which training saves
max-restarts|whole|100|maximum number of times the job is queued again
partition|word||partition
account|word||account
qos|word||quality of service
constraint|word||required features of the nodes
python|path|.venv/bin/python|Python with mmrl installed, on the nodes or in the container
container|none/apptainer/pyxis|none|container runtime
image|path||container image, with --container
mounts|words||SOURCE:TARGET,... mounted in the container
env-file|path||file with lines NAME=VALUE for secrets, with mode 600
'
parse_command 'submit status logs cancel' "$@"
ROOT=$(home "${BASH_SOURCE[0]}")

check_container() {
  if [ "$OPT_CONTAINER" = none ]; then
    [ -z "$OPT_IMAGE$OPT_MOUNTS" ] ||
      fail '--container=none: expected apptainer or pyxis with --image or --mounts'
  else
    need image
  fi
}

submit() {
  local tasks=$OPT_GPUS_PER_NODE name value command
  need config workdir
  check_container
  [ -z "$OPT_ENV_FILE" ] || check_private "$OPT_ENV_FILE"
  [ "$OPT_PROCESSES" = gpu ] || tasks=1
  command=(sbatch --parsable "--job-name=$OPT_NAME" "--chdir=$ROOT"
    "--output=runs/slurm/%x-%j.log" --open-mode=append
    "--nodes=$OPT_NODES" "--ntasks-per-node=$tasks" "--gpus-per-node=$OPT_GPUS_PER_NODE"
    "--cpus-per-task=$OPT_CPUS_PER_PROCESS" "--time=$OPT_TIME"
    # Without "B:", the signal goes to the steps (Python) instead of the batch script.
    "--signal=TERM@$OPT_WARNING" --requeue)
  for name in partition account qos constraint; do
    value=$(variable OPT "$name")
    [ -z "${!value}" ] || command+=("--$name=${!value}")
  done
  command+=("$HERE/slurm.sbatch")
  for name in config workdir gpus-per-node processes cpus-per-process warning max-restarts python \
    container image mounts env-file; do
    value=$(variable OPT "$name")
    [ -z "${!value}" ] || command+=("--$name=${!value}")
  done
  run mkdir -p "$ROOT/runs/slurm"
  run "${command[@]}" -- ${TRAIN_ARGUMENTS[@]+"${TRAIN_ARGUMENTS[@]}"}
}

case $COMMAND in
  submit) submit ;;
  status) run squeue --me "--name=$OPT_NAME" '--format=%i %j %T %M %D %R' ;;
  logs)
    need job
    run tail -n 100 -F "$ROOT/runs/slurm/$OPT_NAME-$OPT_JOB.log"
    ;;
  cancel) run scancel --me "--name=$OPT_NAME" ;;
esac
