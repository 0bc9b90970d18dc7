"""Text to token ids: a sentencepiece model with fixed special ids, and its tokens by word.

The model itself normalises text (NFKC, lower case, every run of white space one blank), so that
equal bytes give equal ids. Characters that the training text lacked are spelled in UTF-8 bytes, so
that no text becomes the unknown id.
"""

import functools
import hashlib
import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece as spm

from mmrl import files
from mmrl.data.text.reports import WORD, normalise
from mmrl.types import InputError

PAD, UNK, BOS, EOS, MASK = 0, 1, 2, 3, 4
MASK_SYMBOL = "<mask>"
MODEL_TYPES = ("bpe", "unigram")

# The words into which tokens are grouped; "1" of "1." is a word here, but no WORD.
_SURFACE_WORD = re.compile(rf"{MASK_SYMBOL}|{WORD.pattern}|\w+|[^\w\s]+")


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
    """A trained sentencepiece model. Immutable; pickles as its model bytes.

    Create one with `train`, `from_bytes` or `from_file`.

    Attributes:
      requested_vocab_size: the argument of `train`, which can exceed what a small corpus supports;
        of a loaded model, its vocabulary size.
    """

    def __init__(self, model: bytes, requested_vocab_size: int | None = None) -> None:
        self._model = bytes(model)
        self._processor = _load(self._model)
        self.requested_vocab_size = requested_vocab_size or self.vocab_size
        self._known: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes, int]]:
        return Tokenizer, (self._model, self.requested_vocab_size)

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, model_type: str = "bpe"
    ) -> "Tokenizer":
        """Learns a vocabulary; the same texts in the same order give the same model bytes.

        Blank texts are skipped. If the corpus is too small for `vocab_size` pieces, the largest
        possible vocabulary is learned: then `vocab_size` is below `requested_vocab_size`.

        Raises:
          InputError: no text, a vocabulary too small for the characters of the corpus (5 special
            ids, 256 bytes and each distinct character), or an unknown model type.
        """
        if model_type not in MODEL_TYPES:
            raise InputError(
                f"tokenizer model type {model_type!r} is not known; expected one of {MODEL_TYPES}"
            )
        folded = (text for text in map(normalise, texts) if text)
        first = next(folded, None)
        if first is None:
            raise InputError("the tokenizer has no text to learn from; expected non-blank texts")
        model = _train(itertools.chain((first,), folded), vocab_size, model_type)
        return cls(model, vocab_size)

    @classmethod
    def from_bytes(cls, model: bytes) -> "Tokenizer":
        """Loads a model from `to_bytes`.

        Raises:
          InputError: the bytes are not a tokenizer written by this class.
        """
        return cls(model)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Loads a model from a file that `save` wrote.

        Raises:
          InputError: the file cannot be read or is not a tokenizer written by this class.
        """
        try:
            return cls(pathlib.Path(path).read_bytes())
        except OSError as error:
            reason = error.strerror
        except InputError as error:
            reason = str(error)
        raise InputError(f"tokenizer file {os.fspath(path)}: {reason}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a file, which is replaced whole."""
        files.write(path, self._model)

    def to_bytes(self) -> bytes:
        """The serialised model."""
        return self._model

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the model: equal exactly for equal tokenizers."""
        return hashlib.sha256(self._model).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._processor.get_piece_size()

    def encode(self, text: str, length: int) -> Encoding:
        """BOS, the pieces of `text`, EOS, then PAD up to `length`.

        A text that does not fit is truncated at its end, before EOS.

        Raises:
          InputError: length is below 3.
        """
        tokens, mask, truncated = self.encode_batch((text,), length)
        return Encoding(tokens[0], mask[0], bool(truncated[0]))

    def encode_batch(self, texts: Sequence[str], length: int) -> BatchEncoding:
        """`encode` for N texts at once: i32[N, length], bool[N, length], bool[N].

        Raises:
          InputError: length is below 3.
        """
        if length < 3:
            raise InputError(f"token length is {length}; expected 3 or more: begin, text, end")
        pieces = [self.pieces_of(text) for text in texts]
        sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        kept = np.minimum(sizes, length - 2)
        columns = np.arange(length)[None]
        tokens = np.full((len(pieces), length), PAD, np.int32)
        tokens[:, 0] = BOS
        body = (columns >= 1) & (columns <= kept[:, None])  # N L
        flat = itertools.chain.from_iterable(ids[: length - 2] for ids in pieces)
        tokens[body] = np.fromiter(flat, np.int32, int(kept.sum()))
        tokens[np.arange(len(pieces)), kept + 1] = EOS
        return BatchEncoding(tokens, columns < kept[:, None] + 2, sizes > kept)

    def pieces_of(self, text: str) -> list[int]:
        """All ids of a text, without BOS and EOS. Do not modify the list.

        No piece spans white space, so that the chunks between it can be encoded one by one, and
        remembered. Reports share most of their words; looking a chunk up is ten times as fast as
        encoding it again.
        """
        if not self.within_words:
            return self._processor.encode(text, out_type=int)
        # White space in every normalisation rule; other kinds may be part of a chunk.
        chunks = text.replace("\n", " ").replace("\t", " ").split(" ")
        try:
            return list(itertools.chain.from_iterable(map(self._known.__getitem__, chunks)))
        except KeyError:
            return list(itertools.chain.from_iterable(map(self._chunk, chunks)))

    def _chunk(self, chunk: str) -> list[int]:
        found = self._known.get(chunk)
        if found is None:
            found = self._processor.encode(chunk, out_type=int)
            if len(self._known) < _CACHED_CHUNKS and len(chunk) <= _CACHED_LETTERS:
                self._known[chunk] = found
        return found

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The normalised text of token ids; PAD, BOS and EOS are dropped.

        Raises:
          InputError: an id is outside the vocabulary.
        """
        return self._processor.decode([i for i in self._ids(tokens) if i not in (PAD, BOS, EOS)])

    def words(self, tokens: Sequence[int] | np.ndarray) -> list[tuple[str, list[int]]]:
        """Groups the token positions of one encoded text into whole words, in order.

        Punctuation is a word of its own; compounds are one word ("x-ray", "2.5", "c7-t1"). PAD, BOS
        and EOS belong to no word. Every other position belongs to exactly one word, the first that
        its piece overlaps.

        Raises:
          InputError: an id is outside the vocabulary.
        """
        positions = [p for p, i in enumerate(self._ids(tokens)) if i not in (PAD, BOS, EOS)]
        surfaces = [self._surfaces[int(tokens[position])] for position in positions]
        # A byte that is not UTF-8 (of a truncated character) becomes one surrogate character.
        text = b"".join(surfaces).decode("utf-8", "surrogateescape")
        found = list(_SURFACE_WORD.finditer(text))
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

    def _ids(self, tokens: Sequence[int] | np.ndarray) -> list[int]:
        ids = np.asarray(tokens, np.int64).tolist()
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise InputError(f"token id {i} is unknown; expected 0 to {self.vocab_size - 1}")
        return ids

    @functools.cached_property
    def spelled(self) -> frozenset[str]:
        """Every piece that is text: neither a byte nor a control symbol."""
        processor = self._processor
        return frozenset(
            processor.id_to_piece(i)
            for i in range(self.vocab_size)
            if not (processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i))
        )

    @functools.cached_property
    def within_words(self) -> bool:
        """Whether no piece has white space after its first character, as in models trained here."""
        pieces = map(self._processor.id_to_piece, range(self.vocab_size))
        return not any("\u2581" in piece[1:] for piece in pieces)

    @functools.cached_property
    def _surfaces(self) -> list[bytes]:
        """The UTF-8 bytes of each id; a piece that begins a word has a leading blank."""
        surfaces = []
        for i in range(self.vocab_size):
            piece = self._processor.id_to_piece(i)
            is_byte = self._processor.is_byte(i)  # spelled <0xE9>
            surfaces.append(
                bytes.fromhex(piece[3:5]) if is_byte else piece.replace("\u2581", " ").encode()
            )
        return surfaces


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _load(model: bytes) -> spm.SentencePieceProcessor:
    expected = "expected a sentencepiece model trained here"
    if not model:
        raise InputError(f"the tokenizer model is empty; {expected}")
    try:
        processor = spm.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter if its message is garbled
        raise InputError(
            f"the tokenizer model of {len(model)} bytes is corrupt; {expected}"
        ) from error
    specials = {"pad": processor.pad_id(), "unk": processor.unk_id()}
    specials |= {"bos": processor.bos_id(), "eos": processor.eos_id()}
    specials["mask"] = processor.piece_to_id(MASK_SYMBOL)
    if tuple(specials.values()) != (PAD, UNK, BOS, EOS, MASK):
        raise InputError(f"the tokenizer model has special ids {specials}; {expected}, with 0 to 4")
    return processor


def _train(texts: Iterator[str], vocab_size: int, model_type: str) -> bytes:
    model = io.BytesIO()
    failures: list[Exception] = []

    def watched() -> Iterator[str]:
        try:
            yield from texts
        except Exception as error:  # sentencepiece would raise another type with its message
            failures.append(error)
            raise

    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=watched(),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            hard_vocab_limit=False,  # a small corpus has fewer pieces instead of an error
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            user_defined_symbols=[MASK_SYMBOL],
            max_sentence_length=2**30,  # bytes; longer texts would be skipped silently
            num_threads=1,  # more threads change the last bits of unigram scores
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if needed is None:
            raise
        raise InputError(
            f"vocabulary size is {vocab_size}; expected at least {needed[1]}, which the "
            "special ids, 256 bytes and the characters of these texts need"
        ) from error
    return model.getvalue()
