"""Prepares a corpus for training: shards of images, an index of all text, a manifest.

    python -m mmrl.prepare openi --input=downloads/openi --output=corpora/openi
    python -m mmrl.prepare table --input=pairs.csv --output=corpora/pairs --option=view_column=view
    python -m mmrl.prepare audit corpora/openi corpora/pairs --out=audit

The same command again goes on where it was stopped, and checks what is complete. Training reads
the result with config.data.source = "prepared", config.data.path = "corpora/openi". An audit looks
at prepared corpora: what they hold, repeats, leaks, lengths of texts.
"""

import ast
import importlib
import os
import signal
from pathlib import Path
from typing import Any

from absl import flags

from mmrl import build, cli
from mmrl.data.image import dicom
from mmrl.data.overlap import leaks
from mmrl.data.reading.rows import VERIFY
from mmrl.preparation import inventory, storage
from mmrl.preparation import source_options as options
from mmrl.preparation.catalogue import catalogue
from mmrl.preparation.job import Settings, check_usable, describe, prepare
from mmrl.preparation.progress import Meter
from mmrl.types import InputError

_FLAGS = cli.new_flags()
_INPUT = flags.DEFINE_string(
    "input", None, "Folder (or table, or TFDS name) of the corpus.", flag_values=_FLAGS
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to fill or to go on with.", flag_values=_FLAGS
)
_SIZE = flags.DEFINE_integer("size", 256, "Longest side of stored images.", flag_values=_FLAGS)
_FORMAT = flags.DEFINE_string(
    "format", "jpeg", f"One of {', '.join(storage.FORMATS)}.", flag_values=_FLAGS
)
_QUALITY = flags.DEFINE_integer("quality", 95, "Of JPEG, 1 to 100.", flag_values=_FLAGS)
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Processes that encode; default: one per core, for a few records none; 0: this one.",
    lower_bound=0,
    flag_values=_FLAGS,
)
_MISSING = flags.DEFINE_bool(
    "allow_missing_images", False, "Keep the text of records without.", flag_values=_FLAGS
)
_VERIFY = flags.DEFINE_string(
    "verify", "header", f"Of images, first: {', '.join(VERIFY)}.", flag_values=_FLAGS
)
_OPTIONS = flags.DEFINE_multi_string(
    "option", [], "KEY=VALUE of the source; repeat it.", flag_values=_FLAGS
)
_SHARD_MIB = flags.DEFINE_integer(
    "shard_mib", 256, "MiB of a shard.", lower_bound=1, flag_values=_FLAGS
)
_MAX_REJECTS = flags.DEFINE_float(
    "max_reject_fraction", 0.01, "Share of records that may be refused.", flag_values=_FLAGS
)
_KEY_FILE = flags.DEFINE_string(
    "key_file", None, "Replace all ids by keyed hashes; made if absent.", flag_values=_FLAGS
)

_TFDS = flags.DEFINE_bool(
    "tfds", False, "Write a TFDS data set below --output instead.", flag_values=_FLAGS
)
_RUNNER = flags.DEFINE_string(
    "beam_runner", None, "With --tfds: the Apache Beam runner to prepare on.", flag_values=_FLAGS
)
_RUNNER_OPTIONS = flags.DEFINE_multi_string(
    "beam_option", [], "KEY=VALUE of the Beam pipeline; repeat it.", flag_values=_FLAGS
)

_AUDIT = {
    name: flags.DEFINE_list(name, None, f"Audit: {text}", flag_values=_FLAGS)
    for name, text in (
        ("out", "folder for page and numbers; default: beside the first corpus."),
        ("lengths", "text lengths to judge, in tokens."),
        ("batch_sizes", "batches in which repeats would be false negatives."),
        ("tokenizer", "file of the tokenizer that counts tokens."),
        ("against", "folders of corpora that nothing may leak into."),
        ("sections", "sections that make up the text."),
    )
}

_WAIVE = flags.DEFINE_string(
    "waive", "()", "Audit: overlap accepted, as config.data.waive_leaks.", flag_values=_FLAGS
)


def source_options(name: str) -> dict[str, Any]:
    """Options of source `name` from all flags.

    Raises:
      InputError: an unknown source or option, or a flag that the source has no use for.
    """
    if _VERIFY.value not in VERIFY:
        raise InputError(build.unknown("value of --verify", _VERIFY.value, VERIFY))
    offered = build.options(build.find("source", name))
    given = options.parse(name, _OPTIONS.value)
    cores = len(os.sched_getaffinity(0))
    flagged: dict[str, tuple[str, Any]] = {
        "path": ("--input", _INPUT.value),
        "allow_missing_images": ("--allow-missing-images", _MISSING.value or None),
        # A prepared corpus is verified in other ways, and was decoded once.
        "verify": ("--verify", _VERIFY.value if name != "prepared" else None),
        "num_threads": ("--workers", _WORKERS.value or cores),
    }
    for option, (flag, value) in flagged.items():
        if value is None:
            continue
        if option in offered:
            if option in given and option not in ("num_threads", "verify"):
                raise InputError(f"--option={option}=... and {flag}; expected one of them")
            given.setdefault(option, value)
        elif flag == "--input":
            raise InputError(f"{flag}={value}: source {name} takes no such thing")
    if "path" in offered and not given.get("path"):
        raise InputError("missing --input=...; see --help")
    return given


def main(*arguments: str) -> None:
    """Prepares one corpus, audits several, or lists those that can be read."""
    if not arguments:
        choices = ", ".join([*build.choices("source"), "audit", "sources"])
        raise InputError(f"missing SOURCE, the first argument; choices: {choices}")
    name, *others = arguments
    _refuse_flags(name)
    for flag in ("beam_runner", "beam_option"):
        if _FLAGS[flag].present and not _TFDS.value:
            raise InputError(f"--{flag.replace('_', '-')} needs --tfds")
    if name == "audit":
        _audit(others)
        return
    if others:
        raise InputError(f"unexpected argument {others[0]!r}; options are written --name=value")
    if name == "sources":
        print(*catalogue(), sep="\n")
        return
    given = source_options(name)
    settings = Settings(
        recipe=storage.Recipe(_SIZE.value, _FORMAT.value, _QUALITY.value),
        shard_bytes=_SHARD_MIB.value * 2**20,
        workers=_WORKERS.value,
        max_reject_fraction=_MAX_REJECTS.value,
        allow_missing_images=_MISSING.value,
    )
    output = cli.folder("output", _OUTPUT.value)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    if _TFDS.value:
        _prepare_tfds(name, given, output, settings)
    else:
        prepare(name, given, output, settings, key=_key())


def _prepare_tfds(name: str, given: dict[str, Any], output: Path, settings: Settings) -> None:
    """Prepares a corpus as a TFDS data set."""
    from mmrl.preparation import tfds_corpus

    if _RUNNER.value is not None and _KEY_FILE.value is not None:
        raise InputError(
            "--key-file with --beam-runner would send the key to every worker; prepare with the key"
            " first, then the result with source 'prepared'"
        )
    with Meter(f"reading {name}", 0) as meter:
        found = inventory.take(name, given, key=_key(), progress=meter.advance)
    describe(found, print)
    check_usable(found, output, settings)
    builder = tfds_corpus.prepare(
        found,
        given,
        settings,
        output,
        runner=_RUNNER.value,
        runner_options=_RUNNER_OPTIONS.value,
    )
    counts = ", ".join(
        f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items()
    )
    print(f"{builder.info.full_name} in {output}: {counts}")


def _key() -> bytes | None:
    """The secret of --key-file; a new one, readable by its owner alone, where there is none."""
    if _KEY_FILE.value is None:
        return None
    if not os.path.exists(_KEY_FILE.value):
        dicom.new_key(_KEY_FILE.value)
        print(f"new key: {_KEY_FILE.value}; keep it, and keep it apart from the corpus")
    return dicom.load_key(_KEY_FILE.value)


def _refuse_flags(name: str) -> None:
    """Refuses flags that are for the other use of this command."""
    of_audit = {*_AUDIT, "waive", "help"}
    for flag in _FLAGS:
        if _FLAGS[flag].present and (flag in of_audit) != (name == "audit") and flag != "help":
            use = "audit" if flag in of_audit else "preparing a source"
            raise InputError(f"--{flag.replace('_', '-')} is for {use}, not for {name!r}")


def _audit(folders: list[str]) -> None:
    """Audits prepared corpora.

    Raises:
      LeakError: see `mmrl.preparation.audit.audit`.
    """
    if not folders:
        raise InputError("missing the folders to audit, after 'audit'")
    given: dict[str, Any] = {}
    for name in _AUDIT:
        texts: list[str] = list(_FLAGS[name].value or [])
        if not texts:
            continue
        if name in ("out", "tokenizer"):
            given[name] = str(cli.folder(name, ",".join(texts)))
        elif name in ("lengths", "batch_sizes"):
            given[name] = _numbers(name, texts)
        else:
            given[name] = texts
    given["waivers"] = leaks.parse_waivers(_waivers(), "--waive")
    # Reads and draws much that preparing does not need.
    importlib.import_module("mmrl.preparation.audit").audit(folders, **given)


def _waivers() -> tuple[Any, ...]:
    try:
        return tuple(ast.literal_eval(_WAIVE.value))
    except (ValueError, SyntaxError, TypeError):
        raise InputError(
            f"--waive={_WAIVE.value}; expected ((kind, greatest share, reason), ...)"
        ) from None


def _numbers(name: str, texts: list[str]) -> tuple[int, ...]:
    if not all(text.isdecimal() and int(text) > 0 for text in texts):
        flag = name.replace("_", "-")
        raise InputError(f"--{flag}={','.join(texts)}; expected whole numbers above 0")
    return tuple(map(int, texts))


def _stop(number: int, frame: object) -> None:
    """Ends the run where it is: nothing that is on the disk needs mending."""
    del frame
    raise cli.PreemptedError(
        f"stopped by {signal.Signals(number).name}; the same command goes on where it was"
    )


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, positional=True)
