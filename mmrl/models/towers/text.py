"""Text towers: tokens to an embedding and the features of words."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmrl import streams
from mmrl.models.text.transformer import Transformer, word_mask
from mmrl.models.towers.base import Arrays, Tower
from mmrl.types import InputError

Texts = tuple[jax.Array, jax.Array, jax.Array]
"""tokens i32[B, C, L]; masks of what is attended to and of what is no padding, bool[B, C, L]."""


class Text(Tower):
    """A tower whose inputs have tokens i32[B, L], or i32[B, C, L], and a mask of the same shape.

    Inputs share a pass of the encoder: one whose words are wanted, and all those of which only
    pooled features are. Without packing only inputs of equal length L do.

    Features of an input with C texts per row have the axes [B, C]; its words are not offered.
    `word_mask` bool[B, L] is the mask without begin and end marks, where texts carry them.

    Args:
      encoder, others: as of Tower.
      length: most tokens of a text, begin and end marks included.
      vocab_size: rows of the table of tokens.
      tokenizer: a tokenizer.model of another run, or the tokenizer.json of an imported encoder; "":
        one is trained on the texts of the training split.
      tokenizer_model: kind of the trained tokenizer, "bpe" or "unigram".
      begin_mark: whether texts start with a mark, which is no word.
      end_mark: whether texts end with a mark, which is no word.
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
        return (*super().features, "word_mask")

    def __call__(
        self,
        inputs: Mapping[str, Arrays],
        wanted: Mapping[str, tuple[str, ...]],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, dict[str, jax.Array]]:
        """See Tower. Words [B, L, D'] are in the compute dtype and not normalised."""
        encoded: dict[str, dict[str, jax.Array]] = {name: {} for name in wanted}
        for name, features in wanted.items():
            if "word_mask" in features:
                encoded[name]["word_mask"] = self._words(inputs[name]["mask"])
        to_pass = {
            name: features for name, features in wanted.items() if set(features) - {"word_mask"}
        }
        for names in self._passes(inputs, to_pass, train):
            own = None if key is None else streams.fold(key, "+".join(names))
            words = "words" in to_pass[names[0]]
            tokens, mask, valid = self._together(
                [self._texts(name, inputs[name]) for name in names]
            )
            features = tuple(dict.fromkeys(f for name in names for f in to_pass[name]))
            if self.embeds_local and "embedding" in features:
                rows = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask))
                found = self._encode(self.encoder, *rows, train=train, key=own)
                pooled, every = (x.reshape(*tokens.shape[:2], *x.shape[1:]) for x in found[:2])
                counted = self._words(valid.reshape(-1, valid.shape[-1])).reshape(valid.shape)
                made, local = self._pooled(pooled, features, every, counted), every[:, 0]
            else:
                pooled, local = self._encode(
                    self.encoder.candidates, tokens, mask, words=words, train=train, key=own
                )
                made = self._pooled(pooled, features)  # B C ...
            first = 0
            for name in names:
                several = inputs[name]["tokens"].ndim == 3
                count = inputs[name]["tokens"].shape[1] if several else 1
                part = slice(first, first + count) if several else first
                encoded[name] |= {f: made[f][:, part] for f in to_pass[name] if f in made}
                first += count
            if words and local is not None:
                encoded[names[0]]["words"] = self.heads["words"](local)
        return encoded

    def _passes(
        self,
        inputs: Mapping[str, Arrays],
        wanted: Mapping[str, tuple[str, ...]],
        train: bool,
    ) -> list[list[str]]:
        """The inputs of each pass; the first of a pass is the one whose words are wanted."""
        with_words = [name for name, features in wanted.items() if "words" in features]
        for name in with_words:
            if inputs[name]["tokens"].ndim == 3:
                raise InputError(f"words of input {name!r}, which has several texts per row")
        passes = [[name] for name in with_words]
        packed = train and not self.frozen and bool(self.encoder.packing)
        for name in (name for name in wanted if name not in with_words):
            length = inputs[name]["tokens"].shape[-1]
            for names in passes:
                if packed or inputs[names[0]]["tokens"].shape[-1] == length:
                    names.append(name)
                    break
            else:
                passes.append([name])
        return passes

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
        return tokens, jnp.ones_like(valid) if self.attend_padding else valid, valid

    def _words(self, mask: jax.Array) -> jax.Array:
        """mask bool[N, L] -> bool[N, L] without the marks that texts of this tower carry."""
        return word_mask(mask, begin=self.begin_mark, end=self.end_mark)
