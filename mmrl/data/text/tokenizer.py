"""Text to rows of token ids, and tokens by word, for vocabularies of any kind."""

import functools
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmrl import files, sequences
from mmrl.data.text import sentencepiece_model
from mmrl.data.text.reports import WORD
from mmrl.data.text.sentencepiece_model import SentencepieceModel
from mmrl.data.text.tokenizer_json import TokenizerJson
from mmrl.data.text.vocabulary import Vocabulary
from mmrl.types import InputError

_CACHED_CHUNKS = 1 << 17
_CACHED_LETTERS = 64  # longer chunks are not words and do not recur


class Encoding(NamedTuple):
    """One encoded text: tokens i32[L], mask bool[L] (True = token), truncated."""

    tokens: np.ndarray
    mask: np.ndarray
    truncated: bool


class BatchEncoding(NamedTuple):
    """Encoded texts: tokens i32[N, L], mask bool[N, L] (True = token), truncated bool[N]."""

    tokens: np.ndarray
    mask: np.ndarray
    truncated: np.ndarray


class Tokenizer:
    """Texts to rows of ids, and ids back to words. Immutable; pickles as the bytes of its file.

    Create one with `train`, `from_bytes` or `from_file`. The content of a file decides its kind:
    a sentencepiece model trained here, or a tokenizer.json of the `tokenizers` library.

    Attributes:
      vocab_size: number of ids, special ones included.
      begin, end, pad, unknown, mask: special ids, see `Vocabulary`.
      suffix: of the name of its file, ".model" or ".json".
      imported: whether it is a tokenizer.json, and not a model trained here.
      requested_vocab_size: the argument of `train`, which can exceed what a small corpus supports;
        of a loaded tokenizer, its vocabulary size.
    """

    def __init__(self, content: bytes, requested_vocab_size: int | None = None) -> None:
        self.vocabulary = vocabulary = _vocabulary(bytes(content))
        self.vocab_size, self.suffix = vocabulary.size, vocabulary.suffix
        self.begin, self.end, self.pad = vocabulary.begin, vocabulary.end, vocabulary.pad
        self.unknown, self.mask = vocabulary.unknown, vocabulary.mask
        self.requested_vocab_size = requested_vocab_size or self.vocab_size
        self.imported = isinstance(vocabulary, TokenizerJson)
        self._marks = (self.begin is not None) + (self.end is not None)
        self._known: dict[str, list[int]] = {}

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that stand for no text: marks, padding, what has no piece, a hidden piece."""
        ids = {self.begin, self.end, self.pad, self.unknown, self.mask}
        return tuple(sorted(one for one in ids if one is not None))

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes, int]]:
        return Tokenizer, (self.to_bytes(), self.requested_vocab_size)

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, model_type: str = "bpe"
    ) -> "Tokenizer":
        """Learns a vocabulary; the same texts in the same order give the same model bytes.

        Blank texts are skipped. If the corpus is too small for `vocab_size` pieces, the largest
        possible vocabulary is learned: then `vocab_size` is below `requested_vocab_size`.

        Raises:
          InputError: no text, an item that is none, a vocabulary too small for the characters of
            the corpus (5 special ids, 256 bytes and each distinct character), or an unknown model
            type.
        """
        content = sentencepiece_model.train(sequences.each(texts, "texts"), vocab_size, model_type)
        return cls(content, vocab_size)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Tokenizer":
        """Loads a tokenizer from `to_bytes`.

        Raises:
          InputError: the bytes are no tokenizer of a known kind.
        """
        return cls(content)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Loads a tokenizer from a file: one that `save` wrote, or any tokenizer.json.

        Raises:
          InputError: the file cannot be read or is no tokenizer of a known kind.
        """
        try:
            return cls(pathlib.Path(path).read_bytes())
        except OSError as error:
            reason = error.strerror
        except InputError as error:
            reason = str(error)
        raise InputError(f"tokenizer file {os.fspath(path)}: {reason}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `from_file` reads; it is replaced whole."""
        files.write(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of its file."""
        return self.vocabulary.content

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the content: equal exactly for equal tokenizers."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def encode(self, text: str, length: int) -> Encoding:
        """The begin mark, the pieces of `text`, the end mark, then padding up to `length`.

        A tokenizer may lack either mark. A text that does not fit is truncated at its end, before
        the end mark. An empty text without marks has one token, `pad`, because encoders need one.

        Raises:
          InputError: length leaves no place for a piece.
        """
        tokens, mask, truncated = self.encode_batch((text,), length)
        return Encoding(tokens[0], mask[0], bool(truncated[0]))

    def encode_batch(self, texts: Sequence[str], length: int) -> BatchEncoding:
        """`encode` for N texts at once: i32[N, length], bool[N, length], bool[N].

        Raises:
          InputError: as of `encode`; a single text, or an item that is no Unicode text.
        """
        room = self.room(length)
        pieces = [self.pieces_of(text) for text in sequences.each(texts, "texts")]
        sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        flat = itertools.chain.from_iterable(ids[:room] for ids in pieces)
        ids = np.fromiter(flat, np.int32, int(np.minimum(sizes, room).sum()))
        return self.framed(ids, sizes, length)

    def room(self, length: int) -> int:
        """How many pieces fit between the marks of a text of `length` tokens.

        Raises:
          InputError: none does.
        """
        if length <= self._marks:
            parts = (
                ["begin"] * (self.begin is not None) + ["text"] + ["end"] * (self.end is not None)
            )
            raise InputError(
                f"token length is {length}; expected {len(parts)} or more: {', '.join(parts)}"
            )
        return length - self._marks

    def framed(self, ids: np.ndarray, sizes: np.ndarray, length: int) -> BatchEncoding:
        """Rows of tokens from the pieces of N texts.

        Args:
          ids: i32[P], the pieces that fit of each text, one text after the other.
          sizes: i64[N], the number of pieces of each text, also of those that do not fit.
        """
        kept = np.minimum(sizes, self.room(length))
        first = int(self.begin is not None)
        columns = np.arange(length)[None]
        tokens = np.full((len(sizes), length), self.pad, np.int32)
        if self.begin is not None:
            tokens[:, 0] = self.begin
        tokens[(columns >= first) & (columns < kept[:, None] + first)] = ids
        if self.end is not None:
            tokens[np.arange(len(sizes)), kept + first] = self.end
        counts = np.maximum(kept + self._marks, 1)
        return BatchEncoding(tokens, columns < counts[:, None], sizes > kept)

    def pieces_of(self, text: str) -> list[int]:
        """All ids of a text, without marks. Do not modify the list.

        Where no piece spans white space, the chunks between it are encoded one by one, and
        remembered. Reports share most of their words; looking a chunk up is ten times as fast as
        encoding it again.
        """
        if not self._by_chunk:
            return self.vocabulary.encode(text)
        # White space in every normalisation rule; other kinds may be part of a chunk.
        chunks = text.replace("\n", " ").replace("\t", " ").split(" ")
        try:
            return list(itertools.chain.from_iterable(map(self._known.__getitem__, chunks)))
        except KeyError:
            return list(itertools.chain.from_iterable(map(self._chunk, chunks)))

    def _chunk(self, chunk: str) -> list[int]:
        found = self._known.get(chunk)
        if found is None:
            found = self.vocabulary.encode(chunk)
            if len(self._known) < _CACHED_CHUNKS and len(chunk) <= _CACHED_LETTERS:
                self._known[chunk] = found
        return found

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of one row of tokens, normalised, without marks and padding.

        Raises:
          InputError: an id is outside the vocabulary.
        """
        ids = self._ids(tokens)
        return self.vocabulary.decode([ids[position] for position in self._inner(ids)])

    def words(self, tokens: Sequence[int] | np.ndarray) -> list[tuple[str, list[int]]]:
        """Groups the positions of one row of tokens into whole words, in order.

        Punctuation is a word of its own; compounds are one word ("x-ray", "2.5", "c7-t1") unless
        the tokenizer itself parts them and forgets the blanks, as WordPiece and CLIP's do. Marks
        and padding belong to no word. Every other position belongs to exactly one word, the first
        that its piece overlaps.

        Raises:
          InputError: an id is outside the vocabulary.
        """
        ids = self._ids(tokens)
        positions = self._inner(ids)
        surfaces = [self._surfaces[ids[position]] for position in positions]
        # A byte that is not UTF-8 (of a truncated character) becomes one surrogate character.
        text = b"".join(surfaces).decode("utf-8", "surrogateescape")
        found = list(self._word.finditer(text))
        if not found:
            return []
        ends = [0, *itertools.accumulate(len(_bytes(character)) for character in text)]
        limits = [ends[match.end()] for match in found]
        groups: list[list[int]] = [[] for _ in found]
        begin = 0
        for position, surface in zip(positions, surfaces, strict=True):
            lead = len(surface) - len(surface.lstrip(b" "))
            word = int(np.searchsorted(limits, begin + lead, side="right"))
            groups[min(word, len(groups) - 1)].append(position)
            begin += len(surface)
        shown = (_bytes(match[0]).decode("utf-8", "replace") for match in found)
        return [(word, group) for word, group in zip(shown, groups, strict=True) if group]

    def _inner(self, ids: Sequence[int]) -> range:
        """The positions between the marks; the padding may have the id of a mark."""
        start, stop = 0, len(ids)
        while stop and ids[stop - 1] == self.pad:
            stop -= 1
        if stop and ids[stop - 1] == self.end:
            stop -= 1
        if stop and ids[0] == self.begin:
            start = 1
        return range(start, stop)

    def _ids(self, tokens: Sequence[int] | np.ndarray) -> list[int]:
        ids = np.asarray(tokens, np.int64).tolist()
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise InputError(f"token id {i} is unknown; expected 0 to {self.vocab_size - 1}")
        return ids

    @functools.cached_property
    def _by_chunk(self) -> bool:
        return self.vocabulary.by_chunk

    @functools.cached_property
    def _surfaces(self) -> Sequence[bytes]:
        return self.vocabulary.surfaces()

    @functools.cached_property
    def _word(self) -> re.Pattern[str]:
        """The words into which tokens are grouped; "1" of "1." is one here, but no WORD."""
        symbols = sorted(self.vocabulary.symbols, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, symbols), WORD.pattern, r"\w+|[^\w\s]+"]))


def _vocabulary(content: bytes) -> Vocabulary:
    """Reads a vocabulary; a tokenizer.json is an object, as which no protocol buffer starts."""
    is_json = content.lstrip().startswith(b"{")
    return TokenizerJson(content) if is_json else SentencepieceModel(content)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
