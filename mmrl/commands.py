"""The names of all commands, and how a command is written for whoever started this process."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train": ("main",),
    "evaluate": ("evaluate",),
    "compare": ("compare",),
    "prepare": ("prepare",),
    "audit": ("prepare", "audit"),
    "plan": ("plan",),
    "convert": ("convert",),
    "export": ("export",),
    "search": ("search",),
    "explore": ("explore",),
    "serve": ("serve",),
    "runs": ("runs",),
    "systems": ("systems",),
    "options": ("options",),
    "doctor": ("doctor",),
}
"""Name -> the module of this package that is the command, and its first arguments."""

_NAMES = {module: name for name, (module, *first) in COMMANDS.items() if not first}


def as_started(text: str) -> str:
    """A text whose commands are written as this process was started.

    They stand in the code as `python -m mmrl.main --config=configs/pretrain.py`, which is right in
    a clone. Whoever started the installed command `mmrl` may have no such Python on the path, and
    no such file; the same is then `mmrl train --config=pretrain`.
    """
    if Path((*sys.orig_argv, "", "")[1]).name != "mmrl":
        return text
    text = re.sub(r"--config=configs/([\w/]+)\.py", r"--config=\1", text)
    return re.sub(r"python -m mmrl\.(\w+)", _named, text)


def _named(found: re.Match[str]) -> str:
    name = _NAMES.get(found[1])
    return f"mmrl {name}" if name else found[0]
