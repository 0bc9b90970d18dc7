"""Text towers: tokens to an embedding and the features of words."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmrl import streams
from mmrl.models.text.transformer import Transformer, word_mask
from mmrl.models.towers.base import Arrays, Tower
from mmrl.types import InputError

Texts = tuple[jax.Array, jax.Array]
"""tokens i32[B, C, L], mask bool[B, C, L]."""


class Text(Tower):
    """A tower whose inputs have tokens i32[B, L], or i32[B, C, L], and a mask of the same shape.

    Inputs share a pass of the encoder: one whose words are wanted, and all those of which only
    pooled features are. Without packing only inputs of equal length L do.

    Features of an input with C texts per row have the axes [B, C]; its words are not offered.
    `word_mask` bool[B, L] is the mask without begin and end marks.

    Args:
      encoder, others: as of Tower.
      length: most tokens of a text, begin and end marks included.
      vocab_size: rows of the table of tokens.
      tokenizer: a sentencepiece .model file; "": one is trained on the texts of the training split.
      tokenizer_model: kind of the trained tokenizer, "bpe" or "unigram".

    Raises:
      InputError: as of Tower.
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
        **others: Any,
    ) -> None:
        super().__init__(encoder=encoder, **others)

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
                encoded[name]["word_mask"] = word_mask(inputs[name]["mask"])
        to_pass = {
            name: features for name, features in wanted.items() if set(features) - {"word_mask"}
        }
        for names in self._passes(inputs, to_pass, train):
            own = None if key is None else streams.fold(key, "+".join(names))
            words = "words" in to_pass[names[0]]
            tokens, mask = self._together([_texts(name, inputs[name]) for name in names])
            pooled, local = self._encode(
                self.encoder.candidates, tokens, mask, words=words, train=train, key=own
            )
            features = tuple(dict.fromkeys(f for name in names for f in to_pass[name]))
            made = self._pooled(pooled, features)  # B C ...
            first = 0
            for name in names:
                count = _texts(name, inputs[name])[0].shape[1]
                several = inputs[name]["tokens"].ndim == 3
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
        longest = max(tokens.shape[2] for tokens, _ in parts)
        padded = [
            tuple(jnp.pad(x, ((0, 0), (0, 0), (0, longest - x.shape[2]))) for x in part)
            if part[0].shape[2] < longest
            else part
            for part in parts
        ]
        tokens, mask = (jnp.concatenate(arrays, axis=1) for arrays in zip(*padded, strict=True))
        return tokens, mask


def _texts(name: str, arrays: Arrays) -> Texts:
    tokens, mask = arrays["tokens"], arrays["mask"]
    if tokens.ndim == 2:
        return tokens[:, None], mask[:, None]
    return tokens, mask
