"""The flags of commands that use trained encoders: of a run, or of a folder that carries no run."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ml_collections
from absl import flags

from mmrl import cli, config, encoder_folder, origins, starts
from mmrl.types import InputError

if TYPE_CHECKING:  # it takes seconds, which --help and refused commands do not need
    from mmrl.training.checkpoint import Step
    from mmrl.training.run import Trained


class Opened(NamedTuple):
    """Encoders, and what they are to read.

    Attributes:
      trained: the encoders.
      chosen: their config, with the data and evaluators that they read.
      asked: the config whose evaluators decide which records are read. Of an encoder that was not
        trained here it is the preset, so that encoders of one tower read the records that all do.
    """

    trained: "Trained"
    chosen: ml_collections.ConfigDict
    asked: ml_collections.ConfigDict


class Encoders:
    """--workdir, --encoder, --step, and --config, which names the data to read.

    Args:
      values: the flags of the command.
      use: what it does with the encoders, as in "to evaluate".
      config_help: of --config.
    """

    def __init__(self, values: flags.FlagValues, use: str, config_help: str) -> None:
        self._workdir = flags.DEFINE_string(
            "workdir",
            None,
            f"FOLDER: The run {use}. This or --encoder is required.",
            flag_values=values,
        )
        self._encoder = flags.DEFINE_string(
            "encoder",
            None,
            f"FOLDER: The encoder {use} that was not trained here: a folder of python -m "
            "mmrl.convert or of mmrl.export --weights. It needs --config.",
            flag_values=values,
        )
        self._step = flags.DEFINE_string(
            "step",
            None,
            "N: The checkpoint of the run, or best: the one chosen by config.best of the run; by "
            "default the latest.",
            flag_values=values,
        )
        self._fall_back = cli.define_fall_back(values)
        self._config = cli.define_config(values, config_help)

    @property
    def is_run(self) -> bool:
        """Whether a run is given.

        Raises:
          InputError: a run and an encoder are given, or neither.
        """
        if bool(self._workdir.value) == bool(self._encoder.value):
            given = "both" if self._workdir.value else "neither"
            raise InputError(f"expected --workdir=FOLDER or --encoder=FOLDER; given: {given}")
        return bool(self._workdir.value)

    def open(self, step: "Step | None" = None) -> Opened:
        """Loads the encoders.

        Args:
          step: of a run, where --step gives none.

        Raises:
          InputError: flags that do not go together, or a folder that holds nothing of the kind.
        """
        return self._open_run(step) if self.is_run else self._open_encoder()

    def alone(self, step: "Step | None" = None) -> "Trained":
        """Loads the encoders without any data.

        Args:
          step: of a run, where --step gives none.

        Raises:
          InputError: as of `open`.
          DamageError: a file of them is not as it was written.
        """
        if self.is_run:
            return self._restored(step)
        return self._read(cli.folder("encoder", self._encoder.value))

    def _open_run(self, step: "Step | None") -> Opened:
        trained = self._restored(step)
        given = config.with_data(trained.config, self._config.read_by(trained.config))
        chosen = origins.resolve(given, trained.folder, self._config.say, needed=True)
        # Its own data may be gone where others are read.
        own = origins.resolve(trained.config, trained.folder, lambda line: None)
        return Opened(dataclasses.replace(trained, config=own), chosen, chosen)

    def _open_encoder(self) -> Opened:
        folder = cli.folder("encoder", self._encoder.value)
        self._check_step()
        preset = self._config.make()
        if preset is None:
            raise InputError(
                "--encoder needs --config=FILE, a preset that names the data and the evaluators, "
                "such as configs/judge.py:roco"
            )
        trained = self._read(folder)
        chosen = config.with_data(trained.config, preset)
        chosen.compile_cache = preset.compile_cache
        return Opened(dataclasses.replace(trained, config=chosen), chosen, preset)

    def _restored(self, step: "Step | None") -> "Trained":
        """The encoders of the run."""
        workdir = cli.folder("workdir", self._workdir.value)
        from mmrl.training import checkpoint, run

        given = checkpoint.parse_step("--step", self._step.value)
        return run.restore(
            workdir,
            step=step if given is None and not self._fall_back.value else given,
            fall_back=self._fall_back.value,
            say=self._config.say,
        )

    def _check_step(self) -> None:
        """Refuses flags about the checkpoints of a run."""
        if self._step.value is not None:
            raise InputError(
                f"--step={self._step.value}: an encoder that was not trained here has no steps"
            )
        if self._fall_back.value:
            raise InputError("--fall-back: an encoder that was not trained here has no checkpoints")

    def _read(self, folder: Path) -> "Trained":
        """The encoders of a folder."""
        self._check_step()
        if not encoder_folder.is_encoder(folder) and (folder / starts.RUN).is_file():
            raise InputError(f"--encoder={folder} holds a run; expected --workdir={folder}")
        from mmrl.training import run

        return run.read_encoder(folder)
