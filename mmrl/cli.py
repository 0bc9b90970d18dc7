"""What all commands share: flags, one-line errors, exit codes.

Exit status 0: done; 2: something given was wrong (one line on stderr says what, and what is
allowed); 3: training stopped on a non-finite loss; 69: not all processes of the run came; 75: told
to stop, and saved, so the same command continues; anything else is a bug and shows a traceback.

Each command keeps its flags to itself (`new_flags`), so that importing two of them, from a
notebook or a test, cannot clash.
"""

import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from mmrl.devices import environment, rollcall
from mmrl.types import InputError, NonFiniteError, PreemptedError

_UNAVAILABLE, _TRY_AGAIN = 69, 75  # EX_UNAVAILABLE and EX_TEMPFAIL of sysexits.h


def new_flags() -> flags.FlagValues:
    """An empty set of flags for one command, with --help."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow what is none
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values, short_name="h")
    return values


def define_config(values: flags.FlagValues, help_text: str) -> Any:
    """--config=FILE.py[:variant,...] with --config.KEY=VALUE overrides of existing keys."""
    return config_flags.DEFINE_config_file("config", None, help_text, flag_values=values)


def run(
    main: Callable[..., None],
    values: flags.FlagValues,
    doc: str | None,
    *,
    positional: bool = False,
) -> None:
    """Parses sys.argv and runs `main`; what the user got wrong ends in one line, not a trace.

    A command with the flags of `distributed.define_flags` may be one of several processes; all
    others refuse settings that ask for several. Flags may be written with dashes, --batch-sizes.

    Args:
      main: reads its flags from `values`.
      doc: the module's docstring, for --help.
      positional: `main` takes what is no flag as its arguments; else that is refused.
    """
    arguments = [_undashed(argument, values) for argument in sys.argv]
    if {"--help", "-h", "-help"} & set(arguments[1:]):
        print(f"{doc or ''}\n{values.get_help()}")
        return
    rest = _parse(arguments, values)
    if rest and not positional:
        _fail(f"unexpected argument {rest[0]!r}; options are written --name=value", 2)
    _give_fake_devices_threads()
    # Grain reads absl's global flags when it starts worker processes.
    flags.FLAGS.mark_as_parsed()
    try:
        _start(values)
        main(*rest)
    except InputError as error:
        _fail(str(error), 2)
    except NonFiniteError as error:
        _fail(str(error), 3)
    except rollcall.StartError as error:
        _fail(str(error), _UNAVAILABLE)
    except PreemptedError as error:
        _exit_soon(_TRY_AGAIN)
        print(error, file=sys.stderr)
        sys.exit(_TRY_AGAIN)
    except BaseException:
        _exit_soon(1)
        raise


def required(name: str, value: Any) -> Any:
    """The value of a flag that has no default.

    Raises:
      InputError: not given.
    """
    try:
        given = value is not None and len(list(value)) > 0
    except OSError as error:  # a config whose file was not found answers so to every question
        raise InputError(f"cannot read the file of --{name}: {error}") from None
    if not given:
        raise InputError(f"missing --{name}=...; see --help")
    return value


def folder(name: str, value: Any) -> Path:
    """The folder that a required flag names.

    Raises:
      InputError: not given, or an address such as gs://bucket/run.
    """
    given = str(required(name, value))
    if "://" in given:
        raise InputError(
            f"--{name}={given} is an address; expected a folder: mount the bucket first, as the "
            "launchers do (launch/README.md)"
        )
    return Path(given)


def _start(values: flags.FlagValues) -> None:
    """Joins the other processes of the run, if there are any."""
    if "coordinator" in values:
        from mmrl.devices import distributed  # here, for commands that need no jax start without it

        given = {
            name: values[name].value for name in ("coordinator", "num_processes", "process_id")
        }
        settings = distributed.read(given, os.environ)
        hosts = distributed.start(settings)
        if hosts and settings is not None and settings.process == 0:
            listed = (f"{process} on {host}" for process, host in enumerate(hosts))
            print(f"processes: {', '.join(listed)}", flush=True)
    elif asked := environment.wanted(os.environ):
        raise InputError(
            f"this command is always one process, but {', '.join(asked)} asks for several; unset it"
        )


def _give_fake_devices_threads() -> None:
    """Fake CPU devices (XLA_FLAGS) that wait for each other in a collective each block a thread.

    XLA sizes its pool by cores and devices; the collectives that are in flight at once, a dozen or
    two on each device, then use it up and the process aborts after 40 seconds. NPROC, read when
    the backend starts, makes it larger.
    """
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if flag and int(flag.group(1)) > 1:
        os.environ.setdefault("NPROC", str(32 * int(flag.group(1))))


def _exit_soon(code: int) -> None:
    """See `distributed.exit_soon`; a process without jax has joined no others."""
    if "jax" in sys.modules:
        from mmrl.devices import distributed

        distributed.exit_soon(code)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    _exit_soon(code)
    sys.exit(code)


def _undashed(argument: str, values: flags.FlagValues) -> str:
    """The argument with the name of its flag as it was defined: --batch-sizes is --batch_sizes."""
    name, equals, value = argument.partition("=")
    known = name.removeprefix("--").replace("-", "_")
    if name.startswith("--") and (known in values or known.removeprefix("no") in values):
        return f"--{known}{equals}{value}"
    return argument


def _parse(arguments: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Sets the flags; returns what is none."""
    try:
        rest = values(list(arguments))
    except (InputError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(_explain(error, arguments), 2)
    except (OSError, ImportError, SyntaxError) as error:
        _fail(f"cannot read the file of --config: {error}", 2)
    return rest[1:]


def _explain(error: Exception, arguments: Sequence[str]) -> str:
    """One line for a flag that failed; for a config override, with the keys that exist."""
    text = str(error.args[0] if error.args else error).strip()
    # The config library quotes the traceback of a config file that raised; its last line says why.
    if "Traceback" in text:
        text = re.sub(r"^[\w.]*(Error|Exception): ", "", text.splitlines()[-1])
    for argument in arguments if isinstance(error, AttributeError | KeyError) else ():
        parts = argument.partition("=")[0].removeprefix("--config.").split(".")
        named = [n for n, part in enumerate(parts) if re.search(rf"\b{re.escape(part)}\b", text)]
        if argument.startswith("--config.") and named:
            wrong = named[-1]
            hint = re.search(r"Did you mean [^?]*\?", text)
            reason = hint.group(0) if hint else f"no key {parts[wrong]!r};"
            return f"{argument}: {reason} {_siblings(parts[:wrong], arguments)}"
    return text


def _siblings(parents: Sequence[str], arguments: Sequence[str]) -> str:
    """The keys below `parents`, from the config file itself: the flag failed to parse."""
    given = (a.split("=", 1)[1] for a in arguments if a.startswith("--config="))
    file, _, variant = next(given, "").partition(":")
    if not file:
        return "(no --config=FILE.py given)"
    config = runpy.run_path(file)["get_config"](*([variant] if variant else []))
    for part in parents:
        config = config[part]
    return f"keys of {'.'.join(('config', *parents))}: {', '.join(sorted(config))}"
