"""Converts an encoder of another library into a folder that towers start from and commands judge.

The folder holds the weights by path, the options of the towers, the tokenizer, and what became of
every tensor. Nothing that a file holds is executed.

    python -m mmrl.convert downloads/pubmedbert --out=weights/pubmedbert
    python -m mmrl.convert downloads/vit.safetensors --out=weights/vit --channels=1 --fold=sum
"""

from pathlib import Path

from absl import flags

from mmrl import cli
from mmrl.types import InputError

FOLDS = ("sum", "mean")

_FLAGS = cli.new_flags()
_OUT = flags.DEFINE_string(
    "out", None, "FOLDER: Where to write; new or empty. Required.", flag_values=_FLAGS
)
_FAMILY = flags.DEFINE_string(
    "family", "", "NAME: Family of the encoder; by default the one that fits.", flag_values=_FLAGS
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    "",
    "PATH: Folder or file of the tokenizer: tokenizer.json, vocab.txt, vocab.json with merges.txt, "
    "or the byte pairs of CLIP; by default it is looked for beside the weights.",
    flag_values=_FLAGS,
)
_SIZE = flags.DEFINE_integer(
    "size",
    None,
    "N: Side of the images in pixels; positions are interpolated. By default that of the source.",
    lower_bound=1,
    flag_values=_FLAGS,
)
_PATCH_SIZE = flags.DEFINE_integer(
    "patch_size",
    None,
    "N: Side of a patch in pixels; its kernel is resampled. By default that of the source.",
    lower_bound=1,
    flag_values=_FLAGS,
)
_LENGTH = flags.DEFINE_integer(
    "length",
    None,
    "N: Most tokens of a text; positions beyond it are left out. By default that of the source.",
    lower_bound=3,
    flag_values=_FLAGS,
)
_CHANNELS = flags.DEFINE_integer(
    "channels",
    None,
    "1: Folds an encoder of three channels to one. By default those of the source.",
    flag_values=_FLAGS,
)
_FOLD = flags.DEFINE_string(
    "fold",
    None,
    f"HOW: How kernels of three channels become one: {', '.join(FOLDS)}. The sum gives what the "
    "source gives for a grey image repeated three times.",
    flag_values=_FLAGS,
)


def main(*paths: str) -> None:
    """Converts one folder or file."""
    if len(paths) != 1:
        given = " ".join(paths) or "none"
        raise InputError(f"expected one folder or file to convert; given: {given}")
    out = cli.output("out", _OUT.value)
    if _CHANNELS.value not in (None, 1):
        raise InputError(f"--channels={_CHANNELS.value}; expected 1")
    if (_CHANNELS.value is None) != (_FOLD.value is None):
        raise InputError("--channels=1 and --fold=HOW belong together; give both or none")
    if _FOLD.value not in (None, *FOLDS):
        raise InputError(f"--fold={_FOLD.value}; choices: {', '.join(FOLDS)}")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out={out} is not empty; expected a new or empty folder")
    # These take seconds, which --help and refused commands do not need.
    from mmrl.models.convert.source import Source
    from mmrl.training import convert

    source = Source(Path(paths[0]))
    options = convert.Options(
        size=_SIZE.value,
        patch_size=_PATCH_SIZE.value,
        length=_LENGTH.value,
        fold=_FOLD.value,
    )
    tokenizer = Path(_TOKENIZER.value) if _TOKENIZER.value else None
    converted = convert.convert(source, _FAMILY.value, tokenizer, options)
    converted.write(out)
    for line in converted.lines():
        print(line)
    print(f"encoder: {out}")


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, positional=True)
