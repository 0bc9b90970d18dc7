"""Where a run was started, and what its relative paths mean to a command started elsewhere.

The config of a run stays as it was typed. WORKDIR/start.json holds the folder in which the command
was started, also relative to the run directory, so that a run which was moved together with its
data finds them. A path that does not exist from the current folder is looked up from there.
"""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mmrl import files
from mmrl.config import PLACES
from mmrl.types import InputError

NAME = "start.json"

# What is read again after training. Towers are not: their values are in the checkpoint.
_PARTS = ("data", "evaluators")
# Last parts of the keys whose values are paths, relative to the current folder. The values of the
# second set may also be names of the package; a path has a suffix.
_PATHS = set(PLACES)
_FILES_OR_NAMES = {"questions", "tasks", "prompts"}


class Origin(NamedTuple):
    """How a run was started the last time.

    Attributes:
      folders: where, the likeliest first: as seen from the run directory, and as it was.
      arguments: of `python -m mmrl.main`.
      steps: after which the run is complete.
    """

    folders: tuple[Path, ...]
    arguments: tuple[str, ...]
    steps: int

    @property
    def command(self) -> str:
        """What to type to continue the run."""
        typed = shlex.join(["python", "-m", "mmrl.main", *self.arguments])
        where = self.folders[-1]
        return typed if where == Path.cwd() else f"cd {shlex.quote(str(where))} && {typed}"


def record(run: Path, arguments: Sequence[str], steps: int) -> None:
    """Writes how a run is started, for `read`; see `Origin`."""
    here = Path.cwd()
    content = {
        "folder": str(here),
        "folder_from_run": os.path.relpath(here, run.resolve()),
        "arguments": list(arguments),
        "steps": steps,
    }
    files.write_json(run / NAME, content)


def read(run: Path) -> Origin | None:
    """How a run was started; None where it does not say."""
    try:
        content = json.loads((run / NAME).read_text(encoding="utf-8"))
        moved = Path(os.path.normpath(run.resolve() / content["folder_from_run"]))
        folders = dict.fromkeys((moved, Path(content["folder"])))
        return Origin(tuple(folders), tuple(map(str, content["arguments"])), int(content["steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def resolve(
    config: ml_collections.ConfigDict,
    run: Path,
    say: Callable[[str], None],
    *,
    needed: bool = False,
) -> ml_collections.ConfigDict:
    """A config in which paths that only exist from where a run was started are found.

    Args:
      say: told each such path, in one line.
      needed: whether the data will be read, so that their files must exist.

    Raises:
      InputError: needed, and a file of the data exists neither here nor there.
    """
    origin = read(run)
    if origin is None:
        return config
    finder = _Finder(origin, say, needed)
    found = config.copy_and_resolve_references()
    with found.unlocked(), found.ignore_type():
        for part in _PARTS:
            found[part] = finder.find(f"config.{part}", part, found[part])
    return found


class _Finder(NamedTuple):
    """See `resolve`."""

    origin: Origin
    say: Callable[[str], None]
    needed: bool

    def find(self, where: str, key: str, value: Any) -> Any:
        """A value of a config with its paths found; `key` is its last name."""
        if hasattr(value, "items"):
            given = dict(value.items())
            if given.get("source") == "tfds":  # its path is a name
                return value
            own = {name: self.find(f"{where}.{name}", name, one) for name, one in given.items()}
            return type(value)(own)
        if isinstance(value, list | tuple):
            return type(value)(
                self.find(f"{where}[{number}]", key, one) for number, one in enumerate(value)
            )
        if not isinstance(value, str) or not _is_path(key, value) or os.path.exists(value):
            return value
        for folder in self.origin.folders:
            if (folder / value).exists():
                self.say(f"{where}={value} is taken from '{folder}', where the run was started")
                return str(folder / value)
        if self.needed and key in _PATHS:
            others = [f"'{folder}'" for folder in self.origin.folders if folder != Path.cwd()]
            places = " nor in ".join([f"'{Path.cwd()}'", *others])
            raise InputError(
                f"{where}={value} is {'neither' if others else 'not'} in {places}, where the run "
                f"was started; if the data were moved, give --{where.partition('[')[0]}=..."
            )
        return value


def _is_path(key: str, value: str) -> bool:
    """Whether the value of a key is a path that depends on the current folder."""
    if not value or os.path.isabs(value) or "://" in value:
        return False
    return key in _PATHS or (key in _FILES_OR_NAMES and bool(Path(value).suffix))
