"""Trains; continues by itself when the run directory holds a checkpoint.

    python -m mmrl.main --config=configs/pretrain.py --workdir=runs/pretrain

As several processes: the same command for each, with --coordinator=HOST:PORT --num_processes=N
--process_id=I (or MMRL_COORDINATOR, MMRL_NUM_PROCESSES, MMRL_PROCESS_ID; on Cloud TPU, Slurm and
Kubernetes MMRL_DISTRIBUTED=auto), and a --workdir that all of them share.
"""

from absl import flags

from mmrl import cli
from mmrl.devices import distributed
from mmrl.training import train

_FLAGS = cli.new_flags()
distributed.define_flags(_FLAGS)
_CONFIG = cli.define_config(_FLAGS, "The experiment.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run directory, created or continued.", flag_values=_FLAGS
)

_REPORT = flags.DEFINE_bool(
    "report", True, "Draw figures and write report.html at the end.", flag_values=_FLAGS
)


def main() -> None:
    """Trains and writes the summary page."""
    config = cli.required("config", _CONFIG.value)
    workdir = cli.folder("workdir", _WORKDIR.value)
    trainer = train.Trainer(config, workdir)
    trained, results = trainer.run()
    if _REPORT.value:
        from mmrl.reporting import (
            write as reporting,  # imported late, because matplotlib loads slowly
        )

        page = reporting.write(
            workdir,
            trained,
            trainer.examples(),
            trainer.evaluators,
            results,
            title=f"mmrl run: {workdir.name}",
            config=trained.meta["config"],
            leaks=trainer.leaks,
        )
        trainer.console.say(f"summary page: {page}")


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
