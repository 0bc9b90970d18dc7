"""Prepares a corpus for training: shards of images, an index of all texts, a manifest.

SOURCE is the kind of the corpus. The images and tables below --input are read as their owner
distributes them; the result is written to --output, and training reads it with
config.data.source = "prepared", config.data.path = OUTPUT. If a preparation is stopped, start the
same command again and it continues; a complete corpus is checked.

    python -m mmrl.prepare openi --input=downloads/openi --output=corpora/openi
    python -m mmrl.prepare table --input=pairs.csv --output=corpora/pairs \\
        --option=projection_column=view
    python -m mmrl.prepare audit corpora/openi corpora/pairs --out=audit
"""

import importlib
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mmrl import build, cli, values
from mmrl.commands import as_started
from mmrl.data.overlap import leaks
from mmrl.data.reading.rows import VERIFY
from mmrl.preparation import catalogue, inventory, pseudonyms, storage
from mmrl.preparation import source_options as options
from mmrl.preparation.job import Settings, check_usable, describe, prepare
from mmrl.preparation.progress import Meter
from mmrl.remote import opened
from mmrl.types import InputError

_FLAGS = cli.new_flags()
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "PATH: The folder of the corpus; for table the table, for tfds the name of the data set.",
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "FOLDER: Where to write; a stopped preparation in it continues. Required.",
    flag_values=_FLAGS,
)
_OPTIONS = flags.DEFINE_multi_string(
    "option",
    [],
    "KEY=VALUE: Sets an option of the source; repeat it for several. `SOURCE --help` lists them.",
    flag_values=_FLAGS,
)
_SIZE = flags.DEFINE_integer(
    "size",
    256,
    "N: Longest side of stored images in pixels; smaller images are not enlarged.",
    flag_values=_FLAGS,
)
_FORMAT = flags.DEFINE_string(
    "format",
    "jpeg",
    f"FORMAT: Format of stored images: {', '.join(storage.FORMATS)}; png keeps 16 bits.",
    flag_values=_FLAGS,
)
_QUALITY = flags.DEFINE_integer("quality", 95, "N: JPEG quality, 1 to 100.", flag_values=_FLAGS)
_VERIFY = flags.DEFINE_string(
    "verify",
    "header",
    "HOW: How images are checked first: decode (decode each once), header (read each file, find "
    "those cut short) or exists.",
    flag_values=_FLAGS,
)
_MISSING = flags.DEFINE_bool(
    "allow_missing_images",
    False,
    "Keeps the text of records whose images are missing.",
    flag_values=_FLAGS,
)
_MAX_REJECTS = flags.DEFINE_float(
    "max_reject_fraction",
    0.01,
    "X: Share of the records that may be rejected; above it the preparation stops.",
    flag_values=_FLAGS,
)
_KEY_FILE = flags.DEFINE_string(
    "key_file",
    None,
    "FILE: Replaces every id by a hash keyed with the secret in this file, which is made if it "
    "does not exist.",
    flag_values=_FLAGS,
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "N: Processes that encode images; 0: only this one. By default one per core, and none for a "
    "few records.",
    lower_bound=0,
    flag_values=_FLAGS,
)
_SHARD_MIB = flags.DEFINE_integer(
    "shard_mib", 256, "N: Size of a shard in MiB.", lower_bound=1, flag_values=_FLAGS
)
_TFDS = flags.DEFINE_bool(
    "tfds", False, "Writes a TensorFlow data set below --output instead.", flag_values=_FLAGS
)
_RUNNER = flags.DEFINE_string(
    "beam_runner",
    None,
    "RUNNER: With --tfds: the Apache Beam runner that does the work.",
    flag_values=_FLAGS,
)
_RUNNER_OPTIONS = flags.DEFINE_multi_string(
    "beam_option",
    [],
    "KEY=VALUE: Sets an option of the Beam pipeline; repeat it for several.",
    flag_values=_FLAGS,
)

_AUDIT = {
    name: flags.DEFINE_list(name, None, text, flag_values=_FLAGS)
    for name, text in (
        (
            "out",
            "FOLDER: Where to write; by default the folder of the first corpus with -audit behind "
            "its name.",
        ),
        (
            "against",
            "FOLDERS: Prepared corpora, separated by commas, that must share nothing with those "
            "audited.",
        ),
        ("lengths", "N,N: Lengths of a text tower, in tokens, to judge; by default several."),
        (
            "batch_sizes",
            "N,N: Batch sizes for which the share of false negatives is computed; by default "
            "several.",
        ),
        (
            "tokenizer",
            "FILE: tokenizer.model or tokenizer.json that counts tokens; by default "
            "one is trained as training does.",
        ),
        (
            "sections",
            "NAME,NAME: Sections that make up the text; by default those of config.data.sections.",
        ),
    )
}
_WAIVE = flags.DEFINE_string(
    "waive",
    "",
    "KIND SHARE REASON: Overlap with --against that is accepted, written as for "
    "config.data.waive_leaks.",
    flag_values=_FLAGS,
)
_OF_AUDIT = (*_AUDIT, "waive")

_AUDIT_HELP = """Audits prepared corpora: what they hold, and what to know before training on them.

Prints tables and writes a page with pictures, audit.html, and all numbers, audit.json: counts,
sections, labels, lengths of texts, duplicates, false negatives in a batch, leaks between splits.
The corpora themselves are not changed. The exit status is 2 if a corpus shares records with one of
--against and --waive does not accept that.

    python -m mmrl.prepare audit corpora/openi
    python -m mmrl.prepare audit corpora/openi --against=corpora/test --lengths=96,128
"""


def show_help(arguments: Sequence[str]) -> str:
    """The help of the command, of `audit`, or of one source.

    Raises:
      InputError: another first argument.
    """
    name = next((one for one in arguments if not one.startswith("-")), "sources")
    if name == "audit":
        usage = ["Usage: python -m mmrl.prepare audit FOLDER... [--NAME=VALUE ...]"]
        return cli.help_text(_AUDIT_HELP, _FLAGS, before=usage, only=_OF_AUDIT, dashes=True)
    if name != "sources":
        return _source_help(name)
    lines = [
        "Usage: python -m mmrl.prepare SOURCE --input=PATH --output=FOLDER [--NAME=VALUE ...]",
        "",
        "SOURCE; `python -m mmrl.prepare SOURCE --help` shows its folder layout and options:",
    ]
    for source in build.choices("source"):
        lines += cli.entry(source, build.document("source", source).partition("\n")[0])
    lines += ["", "Instead of SOURCE:"]
    lines += cli.entry("sources", "Lists the public corpora with licence, access and size.")
    lines += cli.entry(
        "audit", "Audits prepared corpora; see `python -m mmrl.prepare audit --help`."
    )
    kept = [flag for flag in _FLAGS if flag not in _OF_AUDIT]
    return cli.help_text(__doc__, _FLAGS, before=lines, only=kept, dashes=True)


def _source_help(name: str) -> str:
    """What a source reads, its folder layout, and its options."""
    offered = options.options(name)
    # What a source handles item by item is for readers of its code.
    notes = r"\n*(?:Pitfalls handled:|(?<=\s)Also\s+handled:)"
    text = re.split(notes, build.document("source", name))[0].rstrip()
    lines = [text, "", "Flags that set options of this source:"]
    flagged = {"path": "--input=PATH", "num_threads": "--workers=N"}
    flagged |= {"verify": "--verify=HOW", "allow_missing_images": "--allow-missing-images"}
    if name == "prepared":
        del flagged["verify"]
    by_flag = {flagged[key]: option for key, option in offered.items() if key in flagged}
    by_option = {f"--option={k}=VALUE": v for k, v in offered.items() if k not in flagged}
    for head, option in {**by_flag, **by_option}.items():
        default = "" if head in by_flag else values.default_sentence(option)
        lines += cli.entry(f"{head}  ({values.name(option.accepts)})", f"{option.text} {default}")
    needed = [f"--option={k}=..." for k, v in offered.items() if v.required and k not in flagged]
    source = [f"--input=downloads/{name}"] if "path" in offered else []
    command = ["    python -m mmrl.prepare", name, *source, f"--output=corpora/{name}"]
    command += ["\\\n       ", *needed] if needed else []
    lines += ["", "All other flags are shown by `python -m mmrl.prepare --help`."]
    return "\n".join([*lines, "", "Example:", " ".join(command)])


def source_options(name: str) -> dict[str, Any]:
    """Options of source `name` from all flags.

    Raises:
      InputError: an unknown source or option, or a flag that the source has no use for.
    """
    if _VERIFY.value not in VERIFY:
        raise InputError(build.unknown("value of --verify", _VERIFY.value, VERIFY))
    offered = options.options(name)
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
            raise InputError(f"{flag}={value}: source {name} reads no files")
    if "path" in offered and not given.get("path"):
        raise InputError("missing --input=...; see --help")
    return given


def main(*arguments: str) -> None:
    """Prepares a corpus, audits several, or lists the public ones."""
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
        print(as_started("\n".join(catalogue.lines())))
        return
    given = source_options(name)
    settings = Settings(
        storage=storage.Storage(_SIZE.value, _FORMAT.value, _QUALITY.value),
        shard_bytes=_SHARD_MIB.value * 2**20,
        workers=_WORKERS.value,
        max_reject_fraction=_MAX_REJECTS.value,
        allow_missing_images=_MISSING.value,
    )
    if opened.is_address(_OUTPUT.value):
        raise InputError(
            f"--output={_OUTPUT.value} is an address; expected a folder on this machine: copy the "
            "corpus to the store when it is complete (docs/cloud.md)"
        )
    output = cli.output("output", _OUTPUT.value)
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
        pseudonyms.new_key(_KEY_FILE.value)
        print(f"new key: {_KEY_FILE.value}; keep it, and keep it apart from the corpus")
    return pseudonyms.load_key(_KEY_FILE.value)


def _refuse_flags(name: str) -> None:
    """Refuses flags of an audit when preparing, and the other way round."""
    for flag in _FLAGS:
        if _FLAGS[flag].present and (flag in _OF_AUDIT) != (name == "audit"):
            use = "audit" if flag in _OF_AUDIT else "preparing a source"
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
            place = cli.output if name == "out" else cli.folder
            given[name] = str(place(name, ",".join(texts)))
        elif name in ("lengths", "batch_sizes"):
            given[name] = _numbers(name, texts)
        else:
            given[name] = texts
    given["waivers"] = leaks.parse_waivers(_WAIVE.value, "--waive")
    # Reads and draws much that preparing does not need.
    importlib.import_module("mmrl.preparation.audit").audit(folders, **given)


def _numbers(name: str, texts: list[str]) -> tuple[int, ...]:
    if not all(text.isdecimal() and int(text) > 0 for text in texts):
        flag = name.replace("_", "-")
        raise InputError(f"--{flag}={','.join(texts)}; expected whole numbers above 0")
    return tuple(map(int, texts))


def _stop(number: int, frame: object) -> None:
    """Stops at once: what is on the disk is complete or will be written again."""
    del frame
    raise cli.PreemptedError(
        f"stopped by {signal.Signals(number).name}; start the same command again to continue"
    )


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, positional=True, show_help=show_help)
