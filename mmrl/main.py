"""Trains encoders; if the run directory holds a checkpoint, training continues from it.

A run may consist of several processes: start the same command for each, with a WORKDIR that all of
them share. Their flags may also come from the variables MMRL_COORDINATOR, MMRL_NUM_PROCESSES and
MMRL_PROCESS_ID, or on Cloud TPU, Slurm and Kubernetes from MMRL_DISTRIBUTED=auto.

    python -m mmrl.main --config=configs/pretrain.py --workdir=runs/pretrain
    python -m mmrl.main --config=configs/pretrain.py:table --config.data.path=pairs.csv \\
        --workdir=runs/mine
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mmrl import cli, origins

if TYPE_CHECKING:  # these take seconds, which --help and refused commands do not need
    from mmrl.evaluators.base import Results
    from mmrl.training.run import Trained

_FLAGS = cli.new_flags()
_CONFIG = cli.define_config(
    _FLAGS,
    "FILE[:VARIANT,...]: The preset to train. Required.",
    run="workdir",
    lists_presets=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "FOLDER: The run directory; it is created, or the run in it continues. Required.",
    flag_values=_FLAGS,
)
_SUMMARY = flags.DEFINE_bool(
    "summary",
    True,
    "Draws figures and writes the summary page, report.html, at the end.",
    flag_values=_FLAGS,
)
_FALL_BACK = cli.define_fall_back(_FLAGS)
cli.define_processes(_FLAGS)


def main() -> None:
    """Trains and writes the summary page."""
    config = cli.required_config(_CONFIG)
    workdir = cli.output("workdir", _WORKDIR.value)
    config = origins.resolve(config, workdir, _CONFIG.say)
    from mmrl.training import train  # takes a second, which --help and refused commands do not need

    trainer = train.Trainer(config, workdir, fall_back=_FALL_BACK.value)
    if trainer.first:
        origins.record(workdir, sys.argv[1:], trainer.total)

    def write_summary(trained: "Trained", results: "Mapping[str, Results]") -> Mapping[str, Path]:
        from mmrl.reporting import (
            write as reporting,  # imported late, because matplotlib loads slowly
        )

        pages = reporting.write(
            workdir,
            trained,
            trainer.examples(),
            trainer.evaluators,
            results,
            title=f"mmrl run: {workdir.name}",
            config=trained.meta["config"],
            leaks=trainer.leaks,
            numbers=bool(config.trackers),
        )
        trainer.console.say(f"summary page: {pages['whole']}")
        return pages

    trainer.run(write_summary if _SUMMARY.value else None)


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, needs=("config", "workdir"))
