"""What all commands share: flags, one-line errors, exit codes.

Exit status 0: done; 2: something given was wrong (one line on stderr says what, and what is
allowed); 3: training stopped on a non-finite loss; anything else is a bug and shows a traceback.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from mmrl.types import InputError


class NonFiniteError(RuntimeError):
    """The loss or its gradient stopped being finite; the message names step and records."""


def fail(message: str, code: int = 2) -> None:
    """Prints one line to stderr and exits."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; what the user got wrong ends in one line, not a trace."""
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _guarded(main: Callable[[], None]) -> None:
    try:
        main()
    except InputError as error:
        fail(str(error))
    except NonFiniteError as error:
        fail(str(error), 3)


def _parse(arguments: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(arguments))
    except (InputError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(_explain(error, arguments))
        raise AssertionError from None  # fail() does not return
    except (FileNotFoundError, ModuleNotFoundError) as error:
        fail(f"cannot read the file of --config: {error}")
        raise AssertionError from None
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value")
    return rest


def _explain(error: Exception, arguments: Sequence[str]) -> str:
    """Adds to a config override's error which overrides exist beside the misspelt one."""
    text = str(error).strip("'\"")
    for argument in arguments:
        match = re.match(r"--config\.([\w.]+)", argument)
        if match and match.group(1).split(".")[-1] in text:
            return f"{argument}: {text}; {_siblings(match.group(1))}"
    return text


def _siblings(path: str) -> str:
    # The config is loaded by the time an override fails, even if the flag is not marked parsed.
    config = flags.FLAGS["config"].value
    parts = path.split(".")
    reached = "config"
    for part in parts[:-1]:
        if config is None or part not in config:
            break
        config, reached = config[part], f"{reached}.{part}"
    return f"keys of {reached}: {', '.join(sorted(config)) if config is not None else 'unknown'}"


def required(name: str, value: Any) -> Any:
    """The value of a flag that has no default.

    Raises:
      InputError: not given.
    """
    if not value:
        raise InputError(f"missing --{name}=...; see --help")
    return value
