"""Tokenizers of the `tokenizers` library, as imported encoders have them (tokenizer.json).

The library cuts the text; this module states the special ids, spells each id, and tells where a
text can be cut without changing its ids. That holds for two ways to split words: BERT's, which
parts a text at white space and at every punctuation character, and CLIP's, which parts it at white
space and between letters, digits and other characters. Others are not analysed: their texts are
tokenised whole.
"""

import functools
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import tokenizers

from mmrl.data.text.vocabulary import pairs
from mmrl.types import InputError

_MOST_IDS = 1 << 24
_PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>")
_MASK_NAMES = ("[MASK]", "<mask>")
_PROBES = ("a", "0", ".")

# Normalizers that change each character by itself, up to marks combined with it.
_PER_CHARACTER = frozenset(
    ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents")
)
CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_SPLITS = frozenset((CLIP_SPLIT, rf"<\|startoftext\|>|<\|endoftext\|>|{CLIP_SPLIT}"))
_CLIP_ENDINGS = "strvmld"  # letters after an apostrophe that the pattern keeps with it

T = TypeVar("T")


class TokenizerJson:
    """A `Vocabulary` that the `tokenizers` library reads from a tokenizer.json.

    Marks are what its post-processor adds to a text. `pad` is that of its padding setting; without
    one, the token named [PAD] or <pad>, the end mark, or the first special token. Settings for
    truncation and padding to a length are not used.

    Raises:
      InputError: the content is no tokenizer.json, encodes at random, or lacks what is needed here.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.suffix = content, ".json"
        self._library = library = opened(content)
        # The library limits how deep a file nests, so Python can read what it has read.
        self._stated: Mapping[str, Any] = json.loads(content)
        padding = library.padding
        library.no_padding()
        library.no_truncation()
        self._added = library.get_added_tokens_decoder()
        self._tokens = library.get_vocab(with_added_tokens=True)
        self.size = max(self._tokens.values(), default=-1) + 1
        self._check()
        self.begin, self.end = self._marks()
        self.pad = self._padding(padding)
        self.mask = next((self._tokens[name] for name in _MASK_NAMES if name in self._tokens), None)
        self.symbols: tuple[str, ...] = tuple(
            token.content for token in self._added.values() if token.special
        )

    def _check(self) -> None:
        model = self._stated["model"]
        if not 0 < self.size <= _MOST_IDS:
            raise InputError(f"the tokenizer has ids up to {self.size - 1}; expected 1 to 2^24 ids")
        if model.get("dropout"):
            raise InputError(
                f"the tokenizer drops merges at random (dropout {model['dropout']}); expected none"
            )
        unknown = model.get("unk_token")
        if model.get("type") == "Unigram":
            self.unknown = model.get("unk_id")
        else:
            own = self._library.get_vocab(with_added_tokens=model.get("type") == "BPE")
            self.unknown = own.get(unknown)
            if unknown is not None and self.unknown is None:
                raise InputError(f"the tokenizer has no token {unknown!r}, its own unknown token")

    def _marks(self) -> tuple[int | None, int | None]:
        """The ids that stand before and after the pieces of every text."""
        for text in _PROBES:
            if pieces := self.encode(text):
                break
        else:
            raise InputError(f"the tokenizer has ids for none of {', '.join(_PROBES)}")
        whole = guarded("tokenizer without use", lambda: self._library.encode(text).ids)
        for before in range(len(whole) - len(pieces) + 1):
            if whole[before : before + len(pieces)] == pieces:
                marks = whole[:before], whole[before + len(pieces) :]
                if max(map(len, marks)) > 1:
                    raise InputError(
                        f"the tokenizer puts {marks[0]} before and {marks[1]} after the ids of a "
                        "text; expected at most one mark at each side"
                    )
                begin, end = (ids[0] if ids else None for ids in marks)
                return begin, end
        raise InputError("the tokenizer adds marks within a text; expected them around it")

    def _padding(self, stated: Mapping[str, Any] | None) -> int:
        if stated is not None:
            name, number = stated["pad_token"], stated["pad_id"]
            if self._tokens.get(name) != number:
                raise InputError(
                    f"the tokenizer pads with {name!r} as id {number}; its own id is "
                    f"{self._tokens.get(name)}"
                )
            return number
        special = sorted(i for i, token in self._added.items() if token.special)
        named = [self._tokens[name] for name in _PAD_NAMES if name in self._tokens]
        found = [*named, *([] if self.end is None else [self.end]), *special]
        if not found:
            raise InputError("the tokenizer has neither a padding setting nor a special token")
        return found[0]

    def encode(self, text: str) -> list[int]:
        """See Vocabulary.

        Raises:
          InputError: the tokenizer fails on this text.
        """
        # One text at a time: only the library's batches start threads, which do not survive forks.
        return guarded(
            "the tokenizer fails on a text",
            lambda: self._library.encode(text, add_special_tokens=False).ids,
        )

    def decode(self, ids: list[int]) -> str:
        """See Vocabulary. As it is spelled by `surfaces`."""
        surfaces = self.surfaces()
        return b"".join(surfaces[i] for i in ids).decode("utf-8", "replace").strip()

    @functools.cached_property
    def by_chunk(self) -> bool:
        """See Vocabulary."""
        return self._splits() is not None

    def surfaces(self) -> list[bytes]:
        """See Vocabulary."""
        return self._surfaces

    @functools.cached_property
    def _surfaces(self) -> list[bytes]:
        found = [b""] * self.size
        for token, i in self._tokens.items():
            if i not in self._added:
                found[i] = self._spelled(token)
            elif self._prefix is None:
                found[i] = self._added[i].content.encode()
            else:
                found[i] = b" " + self._added[i].content.encode()
        return found

    def _spelled(self, token: str) -> bytes:
        """The bytes of a piece.

        A blank stands before pieces that begin a word (models that mark the others), and after
        those that end one (models that mark these).
        """
        suffix = self._stated["model"].get("end_of_word_suffix") or ""
        blank = b" " if suffix and token.endswith(suffix) else b""
        token = token.removesuffix(suffix)
        if "ByteLevel" in self._kinds:
            return b"".join(map(_byte, token)) + blank
        if self._prefix is not None:
            own = token.removeprefix(self._prefix) if self._prefix else token
            return (b" " if own == token else b"") + own.encode() + blank
        if self._stated["model"].get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes.fromhex(token[3:5])
        return token.replace("\u2581", " ").encode() + blank

    @functools.cached_property
    def _prefix(self) -> str | None:
        """What marks pieces within a word; "" if every piece is a word; None without such marks."""
        model = self._stated["model"]
        if model.get("type") == "WordLevel":
            return ""
        return model.get("continuing_subword_prefix") or None

    @functools.cached_property
    def _kinds(self) -> frozenset[str]:
        """The types of its normalizers and pre-tokenizers."""
        steps = (*_steps(self._stated, "normalizer"), *_steps(self._stated, "pre_tokenizer"))
        return frozenset(step["type"] for step in steps)

    def _splits(self) -> np.ndarray | None:
        """bool[128, 128]: the pairs of characters that its splits keep together; None: not known.

        Not None only if all white space parts a text, and nothing depends on what is beyond it.
        """
        added = self._added.values()
        if any(token.single_word or re.search(r"\s", token.content) for token in added):
            return None
        if not all(map(_per_character, _steps(self._stated, "normalizer"))):
            return None
        steps = list(_steps(self._stated, "pre_tokenizer"))
        if [step["type"] for step in steps] == ["BertPreTokenizer"]:
            return _among(string.ascii_letters + string.digits)
        return _clip_splits() if _splits_as_clip(steps) else None

    def spans(self) -> np.ndarray | None:
        """See Vocabulary. Known special tokens are found in any text, so they count as pieces."""
        table = self._splits()
        if table is not None:
            for token in self._added.values():
                table |= pairs(token.content)
        return table


def opened(content: bytes) -> tokenizers.Tokenizer:
    """The library's own object.

    Raises:
      InputError: the content is no tokenizer.json.
    """
    return guarded(
        "no tokenizer.json that can be read", lambda: tokenizers.Tokenizer.from_buffer(content)
    )


def guarded(what: str, call: Callable[[], T]) -> T:
    """Calls the library, whose errors of any kind become one line.

    Raises:
      InputError: the library raised an error.
    """
    try:
        return call()
    except Exception as error:
        reason: BaseException = error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the library; no subclass of Exception
            raise
        reason = error
    raise InputError(f"{what}: {' '.join(str(reason).split())[:200]}") from reason


def _steps(stated: Mapping[str, Any], part: str) -> Iterator[Mapping[str, Any]]:
    """The single steps of a part of the file, in order."""
    step = stated.get(part)
    if step is None:
        return
    if step["type"] == "Sequence":
        for one in step["normalizers" if part == "normalizer" else "pretokenizers"]:
            yield from _steps({part: one}, part)
    else:
        yield step


def _per_character(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer leaves the chunks between white space independent."""
    if step["type"] == "Replace":
        return step["pattern"] == {"Regex": r"\s+"} and step["content"] == " "
    return step["type"] in _PER_CHARACTER


def _splits_as_clip(steps: list[Mapping[str, Any]]) -> bool:
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False
    split, level = steps
    return (
        split["pattern"].get("Regex") in _CLIP_SPLITS
        and (split["behavior"], split["invert"]) == ("Removed", True)
        and not level["add_prefix_space"]
    )


def _among(characters: str) -> np.ndarray:
    """bool[128, 128], True for pairs of these characters."""
    own = np.zeros(128, bool)
    own[list(characters.encode())] = True
    return own[:, None] & own


def _clip_splits() -> np.ndarray:
    table = _among(string.ascii_letters) | _among(string.punctuation)
    for letter in _CLIP_ENDINGS:
        table |= pairs(f"'{letter}")
    for mark in CLIP_MARKS:  # also where they are no tokens, its pattern keeps them whole
        table |= pairs(mark)
    return table


def _byte(character: str) -> bytes:
    return _BYTES.get(character) or character.encode()


def byte_characters() -> dict[int, str]:
    """Byte -> the character that stands for it in byte-level vocabularies (Radford et al. 2019).

    Printable characters of Latin-1 stand for themselves, the others follow from U+0100 on.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


_BYTES = {character: bytes([byte]) for byte, character in byte_characters().items()}
