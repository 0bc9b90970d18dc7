"""What all commands share: flags, help, errors in one line, exit statuses.

docs/training.md has the table of exit statuses. A status that is not in it is a bug and comes with
a traceback.

Each command has its own set of flags (`new_flags`), so that a notebook or a test can import two of
them.
"""

import contextlib
import errno
import functools
import os
import re
import select
import sys
import textwrap
import traceback
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ml_collections
from absl import flags

from mmrl import config as configs
from mmrl import files, interrupts, presets, starts
from mmrl.commands import as_started
from mmrl.devices import environment, rollcall
from mmrl.remote import opened
from mmrl.types import (
    BusyError,
    DamageError,
    InputError,
    MachineError,
    NonFiniteError,
    PreemptedError,
)

if TYPE_CHECKING:
    from rich.console import Console

_WRONG, _NOT_FINITE, _DAMAGED, _BUSY = 2, 3, 4, 5
# EX_UNAVAILABLE, EX_CANTCREAT, EX_TEMPFAIL and EX_NOPERM of sysexits.h
_UNAVAILABLE, _CANNOT_CREATE, _TRY_AGAIN, _NO_PERMISSION = 69, 73, 75, 77
_CLOSED = 141  # the status that a shell gives to a process ended by SIGPIPE
_WIDTH = 90  # columns of help
_HELP = {"--help", "-h", "-help"}


def new_flags() -> flags.FlagValues:
    """An empty set of flags for one command, with --help.

    The help of a flag may begin with what stands for its value, as in "FOLDER: The run directory."
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow positional arguments
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values, short_name="h")
    return values


class Config(flags.Flag):
    """The flag --config=FILE[:VARIANT,...] together with all --config.KEY=VALUE.

    Attributes:
      changes: the keys and values.
      lists_presets: whether the help of the command lists the shipped presets.
      say: prints a line, in the first process of a run.
    """

    def __init__(self, help_text: str, run: Callable[[], str | None], lists_presets: bool) -> None:
        parser: flags.ArgumentParser[str] = flags.ArgumentParser()
        super().__init__(parser, flags.ArgumentSerializer(), "config", None, help_text)
        self.changes: list[presets.Change] = []
        self._run, self.lists_presets = run, lists_presets
        self.say: Callable[[str], None] = lambda line: None
        self._notes: list[str] = []
        self._made: ml_collections.ConfigDict | None = None

    def unparse(self) -> None:
        """Forgets what was given."""
        super().unparse()
        self.changes, self._notes, self._made = [], [], None

    def make(self) -> ml_collections.ConfigDict | None:
        """The preset with the changes, locked; None when --config was not given.

        Raises:
          InputError: see `presets.load` and `presets.change`.
        """
        if self._made is None and self.value is not None:
            self._notes = []
            run = self._run()
            read = starts.remembering(Path(run)) if run else starts.read
            config = presets.load(self.value, self._notes.append, read)
            self._notes += presets.change(config, self.changes, read)
            self._made = config.lock()
        return self._made

    def require(self) -> None:
        """Refuses that --config was not given.

        Raises:
          InputError: it was not.
        """
        if self.value is None:
            raise InputError(
                f"--config is required, for example --config=configs/pretrain.py; {presets.names()}"
            )

    def read_by(self, trained: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
        """The config whose data and evaluators a command reads with trained encoders.

        Returns:
          The preset; without one the config of the run, changed; None when neither --config nor a
          change of it was given.

        Raises:
          InputError: also a change of a key that trained encoders do not allow.
        """
        if self.value is not None or not self.changes:
            return self.make()
        for key, text in self.changes:
            if not configs.is_read_anew(key):
                raise InputError(
                    f"--config.{key}={text}: trained encoders keep this key; without --config only "
                    "the source and its options, "
                    f"{', '.join(configs.READ_ANEW[1:])} can be changed"
                )
        config = ml_collections.ConfigDict(trained.to_dict())
        self._notes = presets.change(config, self.changes)
        self.say_notes()
        return config

    def say_notes(self) -> None:
        """Says what the changes dropped, and what folders of encoders brought."""
        for note in self._notes:
            self.say(note)


def define_config(
    values: flags.FlagValues, help_text: str, *, run: str = "", lists_presets: bool = False
) -> Config:
    """Defines --config=FILE[:VARIANT,...] and --config.KEY=VALUE.

    Args:
      run: the flag that names the run directory, where the command may continue that run; the
        config then also knows folders of encoders that are gone, see `starts.remembering`.
      lists_presets: see `Config`.
    """
    flag = Config(help_text, lambda: values[run].value if run else None, lists_presets)
    flags.DEFINE_flag(flag, values)
    return flag


def define_fall_back(values: flags.FlagValues) -> flags.FlagHolder[bool]:
    """Defines --fall-back, for checkpoints that are damaged."""
    return flags.DEFINE_bool(
        "fall_back",
        False,
        "Takes the last intact checkpoint if the last one is damaged.",
        flag_values=values,
    )


def define_processes(values: flags.FlagValues) -> None:
    """Defines the flags of a run of several processes, see `mmrl.devices.distributed`."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT: Address of process 0, in a run of several processes.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "num_processes", None, "N: Number of processes of the run.", flag_values=values
    )
    flags.DEFINE_string(
        "process_id", None, "N: Number of this process, from 0.", flag_values=values
    )


def run(
    main: Callable[..., None],
    values: flags.FlagValues,
    doc: str | None,
    *,
    positional: bool = False,
    needs: Sequence[str] = (),
    show_help: Callable[[Sequence[str]], str] | None = None,
) -> None:
    """Parses sys.argv and runs `main`; an error of the user ends in one line, without a trace.

    A command with the flags of `define_processes` may be one of several processes; all others
    refuse settings for several. Flags may be written with dashes, --batch-sizes.

    Args:
      main: reads its flags from `values`.
      doc: the module's docstring, for --help, see `help_text`.
      positional: `main` takes the arguments that are no flags; otherwise they are refused.
      needs: flags that must be given; so that this is told before a config is read.
      show_help: the text for --help, from all arguments; default: `help_text(doc, values)`.
    """
    _show_any_text()
    with interrupts.Interrupts() as interrupted:
        try:
            with opened.closing():
                _run(main, values, doc, positional=positional, needs=needs, show_help=show_help)
        except BaseException as error:
            if interrupted.came or isinstance(error, KeyboardInterrupt):
                interrupted.exit_soon()  # whatever a library made of it
                _end(interrupts.STATUS, interrupts.LINE)
            if _is_closed_output(error):
                _end(_CLOSED)
            status, line = ending(error)
            if not status:
                _exit_soon(1)
                raise
            _end(status, line)


def _run(
    main: Callable[..., None],
    values: flags.FlagValues,
    doc: str | None,
    *,
    positional: bool,
    needs: Sequence[str],
    show_help: Callable[[Sequence[str]], str] | None,
) -> None:
    """`run` without its care for errors."""
    arguments = sys.argv[1:]
    if _HELP & set(arguments):
        shown = show_help(arguments) if show_help else help_text(doc or "", values)
        print(as_started(shown), flush=True)
        return
    rest = _parse(arguments, values)
    if rest and not positional:
        raise InputError(f"unexpected argument {rest[0]!r}; options are written --name=value")
    config = _config_of(values)
    if config is not None:
        # What can be told without the preset, whose modules take seconds to load, is told first.
        presets.check_early(config.changes)
    for name in needs:
        flag = values[name]
        flag.require() if isinstance(flag, Config) else required(name, flag.value)
    if config is not None:
        config.make()  # before the start of several processes, so that errors come early
    _give_fake_devices_threads()
    # Grain reads absl's global flags when it starts worker processes.
    flags.FLAGS.mark_as_parsed()
    first = _start(values)
    if config is not None and first:
        config.say = functools.partial(print, flush=True)
        config.say_notes()
    main(*rest)
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where an error of it is handled


def ending(error: BaseException) -> tuple[int, str]:
    """The exit status and the line with which an error ends a command; (0, "") for a bug."""
    if isinstance(error, PreemptedError):  # a success, as far as it goes
        return _TRY_AGAIN, str(error)
    statuses = {
        DamageError: _DAMAGED,  # before InputError, which it is, too
        InputError: _WRONG,
        NonFiniteError: _NOT_FINITE,
        BusyError: _BUSY,
        rollcall.StartError: _UNAVAILABLE,
        MemoryError: _UNAVAILABLE,
    }
    status, message = next((c for kind, c in statuses.items() if isinstance(error, kind)), 0), ""
    if isinstance(error, MachineError):
        status = error.status
    elif not status and (found := _of_files(error)):
        outside = files.outside(found, "cannot continue")
        status, message = outside.status, str(outside)
    elif isinstance(error, MemoryError):
        message = f"out of memory: {error or 'this machine has too little'}; {_LESS_MEMORY}"
    elif not status and (message := _unavailable(error)):
        status = _UNAVAILABLE
    message = " ".join((message or str(error)).split())
    return (status, f"error: {message}") if status else (0, "")


def _of_files(error: BaseException) -> OSError | None:
    """The fault of a file or disk that an error tells of; None for processes and connections."""
    if not isinstance(error, OSError):
        # Libraries in C++ raise these; any other error is one of Python code.
        found = files.cause(error) if isinstance(error, RuntimeError | ValueError) else None
        return None if found is None or found.errno == errno.ENOENT else found
    others = ConnectionError, BlockingIOError, ChildProcessError, ProcessLookupError, TimeoutError
    is_lost = isinstance(error, FileNotFoundError) and error.filename is None
    known = (error.errno or 0) > 0 and not is_lost and not isinstance(error, others)
    return error if known else None


_LESS_MEMORY = (
    "lower config.batch_size, or raise config.gradient_cache; python -m mmrl.plan shows what a "
    "step takes"
)


def _unavailable(error: BaseException) -> str:
    """What a device lacks, or that it is missing, from an error of jax; "" for other errors."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text and type(error).__name__.endswith("RuntimeError"):
        asked = re.search(r"(?:allocat\w*|requested?) (\d[\d.]*\s?\w*)", text)
        amount = f" ({asked[1]} asked)" if asked else ""
        return f"out of memory on a device{amount}; {_LESS_MEMORY}"
    frames = traceback.extract_tb(error.__traceback__)
    places = {
        f.name for f in frames if f.filename.endswith(os.path.join("jax", "_src", "xla_bridge.py"))
    }
    asked_for = os.environ.get("JAX_PLATFORMS", "")
    if not asked_for or not places & {"backends", "_init_backend"}:
        return ""
    import jax

    jax.config.update("jax_platforms", None)
    there = ", ".join(sorted({device.platform for device in jax.devices()}))
    return (
        f"JAX_PLATFORMS={asked_for}: there is no such device here, or the package of jax for it is "
        f"not installed; there is: {there}. Unset JAX_PLATFORMS to use that"
    )


def _show_any_text() -> None:
    """Lets stdout and stderr show every text: what their encoding lacks appears as an escape."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # None, closed, or another object
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def help_text(
    doc: str,
    values: flags.FlagValues,
    *,
    before: Sequence[str] = (),
    only: Container[str] | None = None,
    dashes: bool = False,
) -> str:
    """The help of a command: its purpose, its flags, the presets if it lists them, examples.

    Args:
      doc: paragraphs of text, and examples in indented paragraphs.
      before: lines to show before the flags.
      only: the flags to show; None: all.
      dashes: names of flags are written with dashes, not underscores; both are accepted.
    """
    paragraphs = [part for part in doc.strip("\n").split("\n\n") if part.strip()]
    examples = [part for part in paragraphs if part.startswith("    ")]
    purpose = "\n\n".join(part for part in paragraphs if part not in examples)
    lines = [purpose, "", *before, *([""] if before else []), "Flags:"]
    # In the order of their definition, which is that of their use.
    shown = [name for name in values if name not in ("h", "help") and (not only or name in only)]
    for name in shown:
        lines += _flag_lines(values[name], dashes=dashes)
        if name == "config":
            lines += entry(
                "--config.KEY=VALUE",
                "Changes a key of the config; repeat it for several. `python -m mmrl.options` "
                "lists all keys, and `python -m mmrl.main --help` all presets.",
            )
    config = _config_of(values)
    if config is not None and config.lists_presets:
        lines += ["", "Presets, with their variants:", *_preset_lines()]
    if examples:
        lines += ["", "Examples:" if len(examples) > 1 or "\n" in examples[0] else "Example:"]
        lines.append("\n".join(examples))
    return "\n".join(lines)


def console() -> "Console":
    """Prints tables in full: what is no terminal has no width, so nothing is cut there."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = 10_000
    return made


def required(name: str, value: Any) -> Any:
    """The value of a flag that has no default.

    Raises:
      InputError: not given.
    """
    if value is None or value == "":
        raise InputError(f"missing --{name}=...; see --help")
    return value


def required_config(flag: Config) -> ml_collections.ConfigDict:
    """The config of a command that cannot do without.

    Raises:
      InputError: --config was not given.
    """
    flag.require()
    config = flag.make()
    assert config is not None  # without --config only
    return config


def folder(name: str, value: Any) -> Path:
    """The folder that a required flag names, to be read; of an address, a local copy of it.

    Raises:
      InputError: not given, or an address that cannot be read.
      MachineError: a store cannot be reached.
    """
    given = str(required(name, value))
    if opened.is_address(given):
        return opened.reading(f"--{name}", given)
    return _folder(name, given)


def _folder(name: str, given: str) -> Path:
    """The folder that a flag names, which is no address."""
    if "://" in given:
        raise InputError(
            f"--{name}={given} is an address of another kind; expected a folder, or a folder of "
            "an object store such as s3://bucket/run (docs/cloud.md)"
        )
    try:
        given.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"--{name}={given!a}: the name holds bytes that are not {sys.getfilesystemencoding()}; "
            "rename the folder, or set LC_ALL=C.UTF-8"
        ) from None
    return Path(given)


def output(name: str, value: Any, *, is_file: bool = False) -> Path:
    """The folder or file that a flag names, to be written to; it need not exist yet.

    Of an address it is a local copy, whose changes are uploaded while the command works.

    Raises:
      InputError: as of `folder`; an address of a file.
      BusyError: another process writes to the address.
      MachineError: it cannot be created; so that this shows before any work is done.
    """
    text = str(required(name, value))
    if is_file and opened.is_address(text):
        raise InputError(f"--{name}={text} is an address; expected a file on this machine")
    is_address = opened.is_address(text)
    path = opened.writing(f"--{name}", text) if is_address else _folder(name, text)
    given = f"--{name}={text}"
    parent = path.parent if is_file else path
    try:
        if is_file and path.is_dir():
            raise MachineError(f"{given} is a folder; expected a file", _CANNOT_CREATE)
        while not parent.exists() and parent != parent.parent:
            if parent.is_symlink():
                raise MachineError(f"{given}: '{parent}' is a broken link", _CANNOT_CREATE)
            parent = parent.parent
        if not parent.is_dir():
            raise MachineError(f"{given}: '{parent}' is a file; expected a folder", _CANNOT_CREATE)
        if os.statvfs(parent).f_flag & os.ST_RDONLY:
            raise MachineError(f"{given}: '{parent}' is on a read-only file system", _CANNOT_CREATE)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise MachineError(f"{given}: no permission to write to '{parent}'", _NO_PERMISSION)
    except OSError as error:
        raise files.outside(error, given) from None
    opened.written(path)
    return path


def _start(values: flags.FlagValues) -> bool:
    """Joins the other processes of the run, if there are any; returns whether this is the first."""
    if "coordinator" in values:
        from mmrl.devices import distributed  # here, for commands that need no jax start without it

        given = {
            name: values[name].value for name in ("coordinator", "num_processes", "process_id")
        }
        settings = distributed.read(given, os.environ)
        if settings is not None:
            _refuse_addresses(values)
        hosts = distributed.start(settings)
        if settings is None:
            return True
        if hosts and settings.process == 0:
            listed = (f"{process} on {host}" for process, host in enumerate(hosts))
            print(f"processes: {', '.join(listed)}", flush=True)
        return settings.process == 0
    if asked := environment.wanted(os.environ):
        raise InputError(
            f"this command is always one process, but {', '.join(asked)} asks for several; unset it"
        )
    return True


def _refuse_addresses(values: flags.FlagValues) -> None:
    """Refuses addresses in a run of several processes, whose folder all of them must share."""
    for name in values:
        if opened.is_address(values[name].value):
            raise InputError(
                f"--{name}={values[name].value}: several processes need a folder that all of them "
                "see at once; mount the bucket, as launch/tpu.sh does (launch/README.md)"
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


def _is_closed_output(error: BaseException) -> bool:
    """Whether an error is that stdout is a pipe which nothing reads any more."""
    if isinstance(error, SystemExit):  # rich exits so
        return isinstance(error.__context__, BrokenPipeError)
    if not isinstance(error, BrokenPipeError) or sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _end(status: int, line: str = "") -> NoReturn:
    """Ends with an exit status, and with a line on stderr unless that is closed."""
    if line and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(as_started(line), file=sys.stderr, flush=True)
    # What is buffered would fail again at the exit of Python, with another status.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    _exit_soon(status)
    sys.exit(status)


def _parse(arguments: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Sets the flags; returns the arguments that are none.

    Raises:
      InputError: an unknown flag, or a value that a flag does not accept.
    """
    kept, changes, config = [], [], _config_of(values)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for argument in arguments[:end]:
        if re.match(r"--?config\.", argument) and config is not None:
            changes.append(presets.split(argument))
        else:
            kept.append(_undashed(argument, values))
    try:
        rest = values([sys.argv[0], *kept, *arguments[end:]])
    except flags.Error as error:
        raise InputError(str(error)) from None
    if config is not None:
        config.changes = changes
    return rest[1:]


def _config_of(values: flags.FlagValues) -> Config | None:
    """The flag --config of a command that has it."""
    if "config" not in values:
        return None
    flag = values["config"]
    assert isinstance(flag, Config)
    return flag


def _undashed(argument: str, values: flags.FlagValues) -> str:
    """The argument with the name of its flag as it was defined: --batch-sizes is --batch_sizes."""
    name, equals, value = argument.partition("=")
    known = name.removeprefix("--").replace("-", "_")
    if name.startswith("--") and (known in values or known.removeprefix("no") in values):
        return f"--{known}{equals}{value}"
    return argument


def _flag_lines(flag: flags.Flag, *, dashes: bool) -> list[str]:
    """A flag with its sentence and default."""
    written = flag.name.replace("_", "-") if dashes else flag.name
    # absl adds to the help of flags that may be repeated.
    metavar, text = "VALUE", re.sub(r";\s+repeat this option.*", "", flag.help or "")
    if found := re.match(r"([A-Z][A-Z ,.:=\[\]]*): ", text):
        metavar, text = found[1], text[found.end() :]
    if flag.boolean and isinstance(flag.default, bool):
        head = f"--[no]{written}" if flag.default else f"--{written}"
    elif flag.boolean:  # may stand alone or have a value
        head = f"--{written}[={metavar}]"
    else:
        head = f"--{written}={metavar}"
    if flag.default not in (None, "", [], False, True):
        text += f" Default: {flag.default}."
    return entry(head, text)


def entry(head: str, text: str) -> list[str]:
    """An entry of a list: what is explained, and the explanation below it."""
    indent = " " * 6
    wrapped = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [f"  {head}", *wrapped]


def _preset_lines() -> Iterator[str]:
    for preset in presets.shipped():
        yield from entry(preset.given, preset.title)
        for name, text in preset.variants.items():
            yield f"        :{name:<15} {text}"
