"""Sentencepiece models with fixed special ids, as trained here.

The model itself normalises text (NFKC, lower case, every run of white space one blank), so that
equal bytes give equal ids. Characters that the training text lacked are spelled in UTF-8 bytes, so
that no text becomes the unknown id.
"""

import functools
import io
import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece as spm

from mmrl.data.text.reports import normalise
from mmrl.types import InputError

PAD, UNK, BOS, EOS, MASK = 0, 1, 2, 3, 4
MASK_SYMBOL = "<mask>"
MODEL_TYPES = ("bpe", "unigram")


class SentencepieceModel:
    """A `Vocabulary` that was trained here.

    Raises:
      InputError: the content is no such model.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.suffix = content, ".model"
        self._processor = _load(content)
        self.begin: int | None = BOS
        self.end: int | None = EOS
        self.pad = PAD
        self.unknown: int | None = UNK
        self.mask: int | None = MASK
        self.symbols: tuple[str, ...] = (MASK_SYMBOL,)
        self.size = self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return self._processor.encode(text, out_type=int)

    def decode(self, ids: list[int]) -> str:
        """See Vocabulary."""
        return self._processor.decode(ids)

    @functools.cached_property
    def by_chunk(self) -> bool:
        """See Vocabulary. True for models trained here: no piece spans white space."""
        pieces = map(self._processor.id_to_piece, range(self.size))
        return not any("\u2581" in piece[1:] for piece in pieces)

    def surfaces(self) -> list[bytes]:
        """See Vocabulary; a piece that begins a word has a leading blank."""
        surfaces = []
        for i in range(self.size):
            piece = self._processor.id_to_piece(i)
            is_byte = self._processor.is_byte(i)  # spelled <0xE9>
            surfaces.append(
                bytes.fromhex(piece[3:5]) if is_byte else piece.replace("\u2581", " ").encode()
            )
        return surfaces

    @property
    def spelled(self) -> frozenset[str]:
        """Every piece that is text: neither a byte nor a control symbol."""
        processor = self._processor
        return frozenset(
            processor.id_to_piece(i)
            for i in range(self.size)
            if not (processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i))
        )

    def spans(self) -> np.ndarray | None:
        """See Vocabulary. Characters that are not pieces themselves are spelled in bytes."""
        if not self.by_chunk:
            return None
        table = np.zeros((128, 128), bool)
        pieces = self.spelled
        for piece in pieces:
            for one, two in itertools.pairwise(piece):
                if one.isascii() and two.isascii():
                    table[ord(one), ord(two)] = True
        for code in range(128):
            if chr(code).lower() not in pieces:
                table[code] = table[:, code] = True
        for upper in range(ord("A"), ord("Z") + 1):
            lower = upper + 32
            table[upper] |= table[lower]
            table[:, upper] |= table[:, lower]
        return table


def _load(content: bytes) -> spm.SentencePieceProcessor:
    expected = "expected a sentencepiece model trained here, or a tokenizer.json"
    if not content:
        raise InputError(f"the tokenizer model is empty; {expected}")
    try:
        processor = spm.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter if its message is garbled
        raise InputError(
            f"the tokenizer model of {len(content)} bytes is corrupt; {expected}"
        ) from error
    specials = {"pad": processor.pad_id(), "unk": processor.unk_id()}
    specials |= {"bos": processor.bos_id(), "eos": processor.eos_id()}
    specials["mask"] = processor.piece_to_id(MASK_SYMBOL)
    if tuple(specials.values()) != (PAD, UNK, BOS, EOS, MASK):
        raise InputError(
            f"the tokenizer model has special ids {specials}; expected 0 to 4, as models trained "
            "here have; of another model, give the tokenizer.json"
        )
    return processor


def train(texts: Iterable[str], vocab_size: int, model_type: str) -> bytes:
    """The content of a new model; see `Tokenizer.train`."""
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"tokenizer model type {model_type!r} is not known; expected one of {MODEL_TYPES}"
        )
    folded = (text for text in map(normalise, texts) if text)
    first = next(folded, None)
    if first is None:
        raise InputError("the tokenizer has no text to learn from; expected non-blank texts")
    return _train(itertools.chain((first,), folded), vocab_size, model_type)


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
