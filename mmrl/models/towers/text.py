"""Text towers: tokens to an embedding and the features of words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmrl import streams
from mmrl.models.text.packing import PAD
from mmrl.models.text.transformer import Transformer, word_mask
from mmrl.models.towers.base import Arrays, Tower
from mmrl.types import InputError

Texts = tuple[jax.Array, jax.Array, jax.Array]
"""tokens i32[B, C, L]; masks of what is attended to and of what is no padding, bool[B, C, L]."""

# Features of every token.
_LOCAL = frozenset({"words", "local"})


class Text(Tower):
    """A tower whose inputs have tokens i32[B, L], or i32[B, C, L], and a mask of the same shape.

    Inputs share a pass of the encoder. Without packing only those of equal length L do. An input of
    which `layers` or `attention` are wanted takes a pass of its own, which is not packed.

    Features beside those of Tower; an input with C texts per row has the axis C after B in all:
      local      [B, L, width], of all tokens, before the head `words`
      mask       bool[B, L], tokens that are attended to
      word_mask  bool[B, L], `mask` without padding, begin and end marks, where texts carry them
      embedded   [B, L, width], rows of the table of tokens, before positions and blocks
      layers     [B, n, L, width], tokens after the blocks that the option `layers` numbers
      attention  f32[B, heads, L], what the pooled token (cls or eos) pays to the tokens in the last
                 block, or what all tokens pay on average; 0 where `mask` is False

    Args:
      encoder, others: as of Tower.
      length: most tokens of a text, begin and end marks included.
      vocab_size: rows of the table of tokens.
      tokenizer: a tokenizer.model of another run, or the tokenizer.json of an imported encoder; "":
        one is trained on the texts of the training split.
      tokenizer_model: kind of the trained tokenizer, "bpe" or "unigram".
      begin_mark: whether texts start with a mark, which is no word.
      end_mark: whether texts end with a mark, which is no word.
      mask_token: id of the token that stands for a hidden one; None: the tokenizer has none. The
        default is that of a tokenizer that is trained here, as all that follows from a tokenizer.
      special_tokens: ids that stand for no text, such as marks and padding.
      attend_padding: whether padding counts as tokens of the text, as in SigLIP. All texts then
        have `length` tokens, and `packing` must be off. `word_mask` leaves the padding out.

    Raises:
      InputError: as of Tower; `attend_padding`, or an embedding of local features, with packing.
    """

    input: ClassVar[str] = "text"

    def __init__(
        self,
        *,
        encoder: Transformer,
        length: int,
        vocab_size: int,
        tokenizer: str = "",
        tokenizer_model: str = "bpe",
        begin_mark: bool = True,
        end_mark: bool = True,
        mask_token: int | None = 4,
        special_tokens: Sequence[int] = (0, 1, 2, 3, 4),
        attend_padding: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(encoder=encoder, **others)
        if attend_padding and encoder.packing:
            raise InputError(
                f"attend_padding with packing {encoder.packing} of a text tower; expected packing "
                "0, because no text is then shorter than another"
            )
        if self.embeds_local and encoder.packing:
            raise InputError(
                f"head 'embedding' of local features with packing {encoder.packing} of a text "
                "tower; expected packing 0, because packed texts have no word features"
            )
        self.length, self.attend_padding = length, attend_padding
        self.begin_mark, self.end_mark = begin_mark, end_mark
        self.vocab_size, self.mask_token = vocab_size, mask_token
        self.special_tokens = tuple(special_tokens)

    @staticmethod
    def encoder_options(given: Mapping[str, Any]) -> dict[str, Any]:
        """See Tower."""
        return {"length": given["length"], "vocab_size": given["vocab_size"]}

    @property
    def local(self) -> tuple[str, ...]:
        """See Tower."""
        return ("words",)

    @property
    def features(self) -> tuple[str, ...]:
        """See Tower."""
        return (*super().features, "local", "mask", "word_mask", "embedded")

    def __call__(
        self,
        inputs: Mapping[str, Arrays],
        wanted: Mapping[str, tuple[str, ...]],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, dict[str, jax.Array]]:
        """See Tower. Words [B, L, D'] are in the compute dtype and not normalised."""
        encoded = {name: self._at_once(inputs[name], of) for name, of in wanted.items()}
        left = {
            name: tuple(one for one in of if one not in encoded[name])
            for name, of in wanted.items()
        }
        for names in self._passes(inputs, left, train):
            own = None if key is None else streams.fold(key, "+".join(names))
            texts = self._together([self._texts(name, inputs[name]) for name in names])
            features = tuple(dict.fromkeys(one for name in names for one in left[name]))
            counts = {name: math.prod(inputs[name]["tokens"].shape[1:-1]) for name in names}
            with_words = sum(counts[name] for name in names if not _LOCAL.isdisjoint(left[name]))
            made = self._pass(texts, features, range(with_words), train, own)
            first = 0
            for name in names:
                several, length = inputs[name]["tokens"].ndim == 3, inputs[name]["mask"].shape[-1]
                part = slice(first, first + counts[name]) if several else first
                for one in left[name]:
                    x = made["local" if one == "words" else one][:, part]
                    if one in _LOCAL:  # the pass may be longer
                        x = x[..., :length, :]
                    encoded[name][one] = self.heads["words"](x) if one == "words" else x
                first += counts[name]
        return encoded

    def _at_once(self, arrays: Arrays, features: tuple[str, ...]) -> dict[str, jax.Array]:
        """Those of `features` that need no pass of the encoder."""
        made, valid = {}, arrays["mask"]
        if "mask" in features:
            made["mask"] = self._attended(valid)
        if "word_mask" in features:
            made["word_mask"] = self._words(valid)
        if "embedded" in features:
            rows = self.encoder.token(jnp.where(valid, arrays["tokens"], PAD))
            made["embedded"] = jax.lax.stop_gradient(rows) if self.frozen else rows
        return made

    def _pass(
        self,
        texts: Texts,
        features: tuple[str, ...],
        words: Sequence[int],
        train: bool,
        key: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Encodes texts in one pass.

        Args:
          words: positions among C, from 0 on, of the texts whose local features are wanted.

        Returns:
          Those of `features` that are not local, each [B, C, ...]; and local [B, C', ...] of the
          first texts, where C' is at least the number of `words`.
        """
        tokens, mask, valid = texts
        asked = self._asked(features)
        if not asked and not (self.embeds_local and "embedding" in features):
            pooled, local = self._encode(
                self.encoder.candidates, tokens, mask, words=words, train=train, key=key
            )
            return {"local": local, **self._pooled(pooled, features)}
        rows = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask))
        found = self._encode(self.encoder, *rows, train=train, key=key, **asked)._asdict()
        given = {
            one: found[one].reshape(*tokens.shape[:2], *found[one].shape[1:])
            for one in ("pooled", "local", *asked)
        }
        local, counted = given["local"], self._words(valid)
        return given | self._pooled(given["pooled"], features, local, counted)

    def _passes(
        self,
        inputs: Mapping[str, Arrays],
        wanted: Mapping[str, tuple[str, ...]],
        train: bool,
    ) -> list[list[str]]:
        """The inputs of each pass; those whose words are wanted come first in it."""
        packed = train and not self.frozen and bool(self.encoder.packing)
        passes: dict[tuple[int, str], list[str]] = {}
        for name in sorted(wanted, key=lambda name: _LOCAL.isdisjoint(wanted[name])):
            length = 0 if packed else inputs[name]["tokens"].shape[-1]
            alone = name if self._asked(wanted[name]) else ""
            if wanted[name]:
                passes.setdefault((length, alone), []).append(name)
        return list(passes.values())

    @staticmethod
    def _together(parts: list[Texts]) -> Texts:
        """Texts of several inputs side by side; neighbours in a row keep the batch axis first."""
        longest = max(tokens.shape[2] for tokens, _, _ in parts)
        padded = [
            tuple(jnp.pad(x, ((0, 0), (0, 0), (0, longest - x.shape[2]))) for x in part)
            if part[0].shape[2] < longest
            else part
            for part in parts
        ]
        tokens, mask, valid = (
            jnp.concatenate(parts, axis=1) for parts in zip(*padded, strict=True)
        )
        return tokens, mask, valid

    def _texts(self, name: str, arrays: Arrays) -> Texts:
        """The texts of an input; C is 1 where rows have one text each."""
        tokens, valid = arrays["tokens"], arrays["mask"]
        if self.attend_padding and tokens.shape[-1] != self.length:
            raise InputError(
                f"input {name!r} has texts of {tokens.shape[-1]} tokens; a text tower with "
                f"attend_padding reads texts of its length, {self.length}"
            )
        if tokens.ndim == 2:
            tokens, valid = tokens[:, None], valid[:, None]
        return tokens, self._attended(valid), valid

    def _attended(self, valid: jax.Array) -> jax.Array:
        """The tokens that are attended to, of the mask of what is no padding."""
        return jnp.ones_like(valid) if self.attend_padding else valid

    def _words(self, mask: jax.Array) -> jax.Array:
        """mask bool[..., L] -> the same without the marks that texts of this tower carry."""
        rows = mask.reshape(-1, mask.shape[-1])
        return word_mask(rows, begin=self.begin_mark, end=self.end_mark).reshape(mask.shape)
