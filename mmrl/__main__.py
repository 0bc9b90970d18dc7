"""The command `mmrl`: one name for all commands.

    mmrl train --config=pretrain --workdir=runs/pretrain
    mmrl evaluate --workdir=runs/pretrain --split=test
    mmrl evaluate --help

`mmrl NAME` does what `python -m mmrl.MODULE` does, and takes the same flags.
"""

import ast
import importlib.util
import os
import runpy
import sys
from pathlib import Path

from mmrl import build, interrupts
from mmrl.commands import COMMANDS
from mmrl.version import __version__

# The title where several names share a module.
_TITLES = {"audit": "Checks prepared corpora: licences, leaks, lengths of texts."}


def main() -> None:
    """Runs the command that the first argument names."""
    interrupts.arm()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--version", "version"):
        print(f"mmrl {__version__}")
    elif name in ("--help", "-h", "help"):
        print(_help())
    elif name not in COMMANDS:
        print(f"error: {build.unknown('command', name, tuple(COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    else:
        module, *first = COMMANDS[name]
        sys.argv[1:] = [*first, *rest]
        # As for `python -m`: modules of the current folder can be named in a config.
        sys.path.insert(0, os.getcwd())
        runpy.run_module(f"mmrl.{module}", run_name="__main__", alter_sys=True)


def _help() -> str:
    """The commands with the first line of their docstrings; none is imported."""
    lines = [f"mmrl {__version__}: pretrains, evaluates and exports biomedical encoders.", ""]
    lines += ["Usage: mmrl COMMAND [--flag=value ...]", "", "Commands:"]
    for name, (module, *_) in COMMANDS.items():
        lines.append(f"  {name:<10}{_TITLES.get(name) or _title(module)}")
    lines += ["", "mmrl COMMAND --help shows the flags of a command."]
    return "\n".join(lines)


def _title(module: str) -> str:
    spec = importlib.util.find_spec(f"mmrl.{module}")
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
