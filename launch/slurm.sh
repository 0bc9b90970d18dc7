#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster; see USAGE.
set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
. "$HERE/common.sh"

USAGE='Usage: launch/slurm.sh COMMAND [OPTION...] [-- --config.KEY=VALUE...]

  submit   queue the training (--config, --workdir on a file system that all nodes share)
  status   the state of the job in the queue
  logs     follow the log (--job=ID, as submit printed it)
  cancel   end the job for good

Before the time limit, and when the job is preempted, SIGTERM reaches every Python process; they
save the same step, the job is queued again and goes on from there. sbatch also reads its own
SBATCH_... variables (SBATCH_RESERVATION, ...), for what has no option here.'
OPTIONS='
config|config||config file
workdir|path||run directory, created or continued
name|name|mmrl|name of the job
job|count||id of the job, for logs
nodes|count|1|number of nodes
gpus-per-node|count|8|GPUs that each node has
processes|gpu/node|gpu|one process per GPU, or one per node that drives all its GPUs
cpus-per-process|count|8|CPU cores of each process
time|time|24:00:00|time limit of one allocation
warning|count|300|seconds before the end at which training is told to save
max-restarts|whole|100|how often the job is queued again
partition|word||partition
account|word||account
qos|word||quality of service
constraint|word||features that the nodes must have
python|path|.venv/bin/python|Python with mmrl installed, on the nodes or in the container
container|none/apptainer/pyxis|none|what runs the image
image|path||container image, with --container
mounts|words||SOURCE:TARGET,... made visible in the container
env-file|path||file of NAME=VALUE lines with secrets, chmod 600
'
parse_command 'submit status logs cancel' "$@"
ROOT=$(home "${BASH_SOURCE[0]}")

check_container() {
  if [ "$OPT_CONTAINER" = none ]; then
    [ -z "$OPT_IMAGE$OPT_MOUNTS" ] ||
      fail '--container=none: expected apptainer or pyxis when --image or --mounts is given'
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
    # Without "B:" the signal goes to the steps, that is to Python, and not to the batch script.
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
