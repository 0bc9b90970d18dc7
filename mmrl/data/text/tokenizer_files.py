"""The tokenizer of an imported encoder, as one tokenizer.json, from the files that encoders have.

These are a tokenizer.json itself; vocab.txt of BERT (Devlin et al. 2019); vocab.json with
merges.txt of GPT-2, Qwen2 and CLIP; or the file of byte pairs that CLIP was published with
(bpe_simple_vocab_16e6.txt.gz, Radford et al. 2021). A tokenizer_config.json beside them states what
they leave open, such as the token that pads.
"""

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mmrl import sequences
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.data.text.tokenizer_json import CLIP_MARKS, CLIP_SPLIT, byte_characters, guarded, opened
from mmrl.types import InputError

NAMES = ("tokenizer.json", "vocab.txt", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
"""Of the files that are looked for in a folder, in this order."""
MERGES, CONFIG = "merges.txt", "tokenizer_config.json"

_CLIP_MERGES = 49152 - 256 - 2
_MOST_BYTES = 1 << 28
_END_OF_TEXT = "<|endoftext|>"
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A file that `Tokenizer.from_file` reads.

    Attributes:
      name: "tokenizer.json", or "tokenizer.model" of a tokenizer trained here.
      content: its bytes.
      tokenizer: what they are.
    """

    name: str
    content: bytes
    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self.tokenizer.vocab_size


def read(path: str | os.PathLike[str]) -> TokenizerFile:
    """The tokenizer in a folder, or in a file with the files beside it.

    Raises:
      InputError: there is none, a file is damaged, or what it leaves open is nowhere stated.
    """
    given = pathlib.Path(path)
    if given.name == MERGES:
        given = given.with_name("vocab.json")
    found = (given, *(given / name for name in (*NAMES, "tokenizer.model")))
    file = next(filter(pathlib.Path.is_file, found), None)
    if file is None:
        *others, last = NAMES
        raise InputError(
            f"no tokenizer in {given}; expected {', '.join(others)} with {MERGES}, or {last}"
        )
    try:
        content = _content(file)
        tokenizer = Tokenizer.from_bytes(content)
    except InputError as error:
        raise InputError(f"tokenizer file {file}: {error}") from error
    return TokenizerFile(f"tokenizer{tokenizer.suffix}", content, tokenizer)


def _content(file: pathlib.Path) -> bytes:
    config = _object(file.with_name(CONFIG)) if file.with_name(CONFIG).is_file() else {}
    if file.suffix == ".txt":
        return word_pieces(_lines(_text(file)), config.get("do_lower_case"))
    if file.suffix == ".gz":
        return clip_pairs(_read(file))
    if file.name == "vocab.json":
        merges = _lines(_text(file.with_name(MERGES)))
        return byte_pairs(
            _object(file), [one for one in merges if not one.startswith("#version")], config
        )
    content = _read(file)
    return _with_padding(content, config) if content.lstrip().startswith(b"{") else content


# --- builders ------------------------------------------------------------------------------------


def word_pieces(pieces: Sequence[str], lower_case: bool | None = None) -> bytes:
    """A tokenizer.json of BERT's WordPiece.

    Args:
      pieces: by id; those within a word start with ##.
      lower_case: whether texts become lower case, and lose their accents. None: unless a piece has
        a capital letter.

    Raises:
      InputError: a special token is missing.
    """
    vocabulary = _numbered(sequences.of(pieces, "pieces"))
    names = {name: f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    missing = [name for name in names.values() if name not in vocabulary and name != "[MASK]"]
    if missing:
        raise InputError(f"the vocabulary lacks {', '.join(missing)}; expected those of BERT")
    if lower_case is None:
        special = set(names.values())
        lower_case = not any(p != p.lower() for p in pieces if p not in special and p[:1] != "[")
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=names["UNK"]))
    made.normalizer = normalizers.BertNormalizer(lowercase=bool(lower_case))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    begin, end = names["CLS"], names["SEP"]
    made.post_processor = processors.BertProcessing(
        (end, vocabulary[end]), (begin, vocabulary[begin])
    )
    return _finished(made, [name for name in names.values() if name in vocabulary], names["PAD"])


def clip_pairs(packed: bytes) -> bytes:
    """A tokenizer.json from the file of byte pairs that CLIP was published with.

    Args:
      packed: gzip data of a line of title and at least 48,894 lines of two pieces.

    Raises:
      InputError: the file is damaged, or too short.
    """
    unpack = zlib.decompressobj(wbits=31)
    try:
        text = unpack.decompress(packed, _MOST_BYTES).decode("utf-8")
    except (zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"not the byte pairs of CLIP: {error}") from error
    merges = text.split("\n")[1 : 1 + _CLIP_MERGES]
    if len(merges) < _CLIP_MERGES:
        raise InputError(f"{len(merges):,} byte pairs; expected {_CLIP_MERGES:,} or more, of CLIP")
    single = list(byte_characters().values())
    joined = ["".join(_pair(merge)) for merge in merges]
    pieces = [*single, *(f"{one}</w>" for one in single), *joined, *CLIP_MARKS]
    return byte_pairs(_numbered(pieces), merges, {"tokenizer_class": "CLIPTokenizer"})


def byte_pairs(
    vocabulary: Mapping[str, int], merges: Iterable[str], config: Mapping[str, Any]
) -> bytes:
    """A tokenizer.json of pairs of bytes, as GPT-2, Qwen2 and CLIP have them.

    Args:
      vocabulary: piece -> id.
      merges: pairs of pieces with a blank between them, in the order in which they are joined.
      config: of tokenizer_config.json. `tokenizer_class` tells how words are split; without it, the
        vocabulary of CLIP is known by its pieces that end with </w>.

    Raises:
      InputError: another class, or files that do not fit each other.
    """
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if not name and any(piece.endswith("</w>") for piece in vocabulary):
        name = "CLIPTokenizer"
    if name not in _SPLITS:
        stated = f"tokenizer_class {name!r}" if name else f"no tokenizer_class in {CONFIG}"
        raise InputError(f"{stated}; choices: {', '.join(_SPLITS)}, or give a tokenizer.json")
    clip = name == "CLIPTokenizer"
    pad = _name(config, "pad_token") or _END_OF_TEXT
    unknown = _name(config, "unk_token") or _END_OF_TEXT
    options = {"unk_token": unknown, "end_of_word_suffix": "</w>"} if clip else {}
    pairs = [_pair(merge) for merge in merges if merge]
    model = guarded(
        "vocabulary and merges do not fit each other",
        lambda: models.BPE(dict(vocabulary), pairs, **options),
    )
    made = tokenizers.Tokenizer(model)
    _SPLITS[name](made)
    added = _added(config)
    special = [*(CLIP_MARKS if clip else (_END_OF_TEXT,)), *added]
    if pad not in vocabulary:  # a piece of texts that also pads, such as "!", stays a piece
        special.append(pad)
    content = _finished(made, special, pad)
    for token, number in added.items():
        if made.token_to_id(token) != number:
            raise InputError(
                f"{CONFIG} gives {token!r} the id {number}; by the vocabulary it is "
                f"{made.token_to_id(token)}"
            )
    return content


def _split_as_gpt2(made: tokenizers.Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _split_as_qwen2(made: tokenizers.Tokenizer) -> None:
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _split_as_clip(made: tokenizers.Tokenizer) -> None:
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(CLIP_SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ids = [i for mark in CLIP_MARKS if (i := made.token_to_id(mark)) is not None]
    if len(ids) < len(CLIP_MARKS):
        raise InputError(f"the vocabulary lacks {' or '.join(CLIP_MARKS)}; expected that of CLIP")
    begin, end = zip(CLIP_MARKS, ids, strict=True)
    made.post_processor = processors.RobertaProcessing(
        end, begin, trim_offsets=False, add_prefix_space=False
    )


_SPLITS: Mapping[str, Callable[[tokenizers.Tokenizer], None]] = {
    "GPT2Tokenizer": _split_as_gpt2,
    "Qwen2Tokenizer": _split_as_qwen2,
    "CLIPTokenizer": _split_as_clip,
}


def _finished(made: tokenizers.Tokenizer, special: Sequence[str], pad: str) -> bytes:
    """The file of a tokenizer, with its special tokens and its padding."""
    made.add_special_tokens(list(special))
    made.enable_padding(pad_id=made.token_to_id(pad), pad_token=pad)
    return made.to_str().encode()


def _with_padding(content: bytes, config: Mapping[str, Any]) -> bytes:
    """A tokenizer.json that states how to pad, as tokenizer_config.json has it."""
    pad = _name(config, "pad_token")
    if pad is None or (made := opened(content)).padding is not None:
        return content
    number = made.token_to_id(pad)
    if number is None:
        raise InputError(f"{CONFIG} pads with {pad!r}, which the tokenizer lacks")
    made.enable_padding(pad_id=number, pad_token=pad)
    return made.to_str().encode()


# --- files ---------------------------------------------------------------------------------------


def _read(file: pathlib.Path) -> bytes:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"it has {file.stat().st_size:,} bytes; expected at most {_MOST_BYTES:,}"
            )
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file.name}: {error.strerror}") from error


def _text(file: pathlib.Path) -> str:
    try:
        return _read(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file.name} is not UTF-8") from error


def _lines(text: str) -> list[str]:
    """The lines of a text; other than `str.splitlines`, only line feeds end one."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def _object(file: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file.name} holds a {type(found).__name__}; expected an object")
    return found


def _added(config: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the tokens that a config adds to the vocabulary, by ascending id."""
    stated = config.get("added_tokens_decoder") or {}
    if not isinstance(stated, dict) or not all(key.isdecimal() for key in stated):
        raise InputError(f"added_tokens_decoder of {CONFIG} is damaged; expected tokens by id")
    names = {int(number): _name(stated, number) for number in stated}
    return {name: number for number, name in sorted(names.items()) if name}


def _name(stated: Any, key: str) -> str | None:
    """A token that a config names, by itself or as an object with its content."""
    value = stated.get(key) if isinstance(stated, dict) else None
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _numbered(pieces: Sequence[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}


def _pair(merge: str) -> tuple[str, str]:
    parts = merge.split(" ")
    if len(parts) != 2:
        raise InputError(f"merge {merge[:40]!r}; expected two pieces with a blank between them")
    return parts[0], parts[1]
