"""The interface of trackers: what a run tells them, and when.

A tracker gets the config, the values by step and the results of a run. It gets no image, no text
and no id of a record: nothing that it is told has them.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmrl.types import InputError

Status = Literal["finished", "stopped", "failed"]
"""How a run ended: with all steps, by a signal with its work saved, or by an error."""

Page = Literal["numbers", "whole", "none"]


@dataclasses.dataclass(frozen=True)
class Start:
    """What a tracker is told at the start.

    Attributes:
      folder: for what the tracker keeps on this machine; it exists.
      title: the name of the run directory.
      config: of the run, JSON-able.
      id: what `Tracker.start` returned when the run began; "" for a new run.
    """

    folder: Path
    title: str
    config: Mapping[str, Any]
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a tracker is told at the end.

    Attributes:
      values: "{evaluator}/{measure}" -> value, of the last evaluation.
      pages: "whole", the summary page, which shows images and texts of records; and "numbers", the
        page without them. Empty if the run writes no page.
    """

    values: Mapping[str, float]
    pages: Mapping[str, Path] = dataclasses.field(default_factory=dict)


class Tracker:
    """Sends what a run writes to somewhere else.

    Its constructor takes options by keyword and does nothing else. In a run of several processes,
    the first one alone calls the methods. All methods after `start` may raise anything: training
    goes on, and counts what was lost.
    """

    package: ClassVar[str] = ""
    """The package that it needs, as pip knows it; "" if it needs none."""

    def check(self) -> None:
        """Refuses what cannot work, before data are read.

        Raises:
          InputError: the package is missing, or an option is wrong.
        """

    def place(self) -> Mapping[str, str]:
        """The options that say where the run is sent; if one changes, a new run begins there."""
        return {}

    def start(self, start: Start) -> str:
        """Begins a run, or continues the run `start.id`; returns its id."""
        raise NotImplementedError

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Sends values of a step; `kind` is train, eval or timing. A value may be NaN."""
        raise NotImplementedError

    def outcome(self, outcome: Outcome) -> None:
        """Sends the results of the run."""

    def close(self, status: Status) -> None:
        """Sends what is left, and ends the run."""


def find_package(name: str, module: str = "") -> Any:
    """The module of a package that a tracker needs.

    Raises:
      InputError: it cannot be imported; says how to install it.
    """
    try:
        return importlib.import_module(module or name)
    except ImportError as error:
        raise InputError(
            f"the package {name} cannot be imported ({error}): pip install {name}"
        ) from None
