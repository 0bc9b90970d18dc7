"""Hides tokens of a text, which masked language modelling predicts."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.context import Context
from mmrl.models.derived.base import Arrays, Derived
from mmrl.models.derived.patches import check_share
from mmrl.types import InputError


class MaskedTokens(Derived):
    """Chooses tokens at random and hides most of them (Devlin et al. 2019, BERT, section 3.1).

    Of the chosen tokens, 80 % become the mask token, 10 % a random token, and 10 % stay. Arrays:
    those of the text with tokens i32[B, L] replaced, and target i32[B, L], the former token at
    chosen places and -1 elsewhere. `mask` is that of the text.

    Args:
      vocab_size, mask_token, special_tokens: of the tower. Special tokens are neither chosen nor
        drawn.
      share: probability that a token, or a word, is chosen.
      words: name of an array bool[B, L] of the input that marks the first token of each word, whose
        tokens are then chosen together; "": tokens are chosen one by one.
      spans: name of an array i32[B, C, 2] of the input: the first token of each of C spans, and the
        token after its last one, such as `spans` of the input concepts. Whole spans are then chosen
        and hidden, and no other tokens; "": tokens or words are.
      among: name of an array bool[B, L] of the input, such as the tokens of entities: no others are
        chosen; "": any may be.

    Raises:
      InputError: a share out of range, spans beside words, or a tokenizer without a mask token.
    """

    of: ClassVar[str] = "text"
    batch: ClassVar[Mapping[str, str]] = {"index": "index"}

    def __init__(
        self,
        *,
        vocab_size: int,
        mask_token: int | None,
        special_tokens: Sequence[int],
        share: float = 0.15,
        words: str = "",
        spans: str = "",
        among: str = "",
    ) -> None:
        check_share("MaskedTokens", share)
        if words and spans:
            raise InputError(f"MaskedTokens: words {words!r} and spans {spans!r}; expected one")
        if mask_token is None:
            raise InputError(
                "MaskedTokens: the tokenizer has no mask token; expected one that has, such as one "
                "that is trained here"
            )
        self.vocab_size, self.mask_token = vocab_size, mask_token
        self.special_tokens = tuple(special_tokens)
        self.share, self.words, self.spans, self.among = share, words, spans, among

    def __call__(self, *, context: Context, given: Arrays, index: jax.Array) -> Arrays:
        """See Derived.

        Raises:
          InputError: the input has no array `words`, `spans` or `among`.
        """
        tokens, may = given["tokens"], given["mask"] & ~self._special(given["tokens"])
        if self.among:
            may &= self._array(given, "among", self.among)
        length = tokens.shape[1]

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            first, second, third = jax.random.split(key, 3)
            other = jax.random.randint(third, (length,), 0, self.vocab_size, jnp.int32)
            return (
                jax.random.uniform(first, (length,)),
                jax.random.uniform(second, (length,)),
                other,
            )

        choice, fate, other = jax.vmap(draw)(context.row_keys(index))
        if self.words:
            # All tokens of a word share the draw of the place that has the number of the word.
            starts = self._array(given, "words", self.words).astype(jnp.int32)
            word = jnp.maximum(jnp.cumsum(starts, axis=1) - 1, 0)
            choice = jnp.take_along_axis(choice, word, axis=1)
        chosen = may & (choice < self.share)
        if self.spans:
            chosen = may & self._of_spans(self._array(given, "spans", self.spans), choice)
        other = jnp.where(self._special(other), tokens, other)
        hidden = jnp.where(fate < 0.8, self.mask_token, jnp.where(fate < 0.9, other, tokens))
        return {
            "tokens": jnp.where(chosen, hidden, tokens).astype(jnp.int32),
            "target": jnp.where(chosen, tokens, -1).astype(jnp.int32),
        }

    def _of_spans(self, spans: jax.Array, choice: jax.Array) -> jax.Array:
        """The tokens bool[B, L] of the spans i32[B, C, 2] that are chosen.

        A span has the draw f32[B, L] of the place of its first token.
        """
        first, after = spans[..., 0], spans[..., 1]  # -1 where there is none
        drawn = jnp.take_along_axis(choice, jnp.maximum(first, 0), axis=1)
        places = jnp.arange(choice.shape[1])
        inside = (first[..., None] <= places) & (places < after[..., None])  # B C L
        return jnp.any(inside & (drawn < self.share)[..., None], axis=1)

    def _special(self, tokens: jax.Array) -> jax.Array:
        found = jnp.zeros(tokens.shape, bool)
        for one in self.special_tokens:
            found |= tokens == one
        return found

    def _array(self, given: Arrays, option: str, name: str) -> jax.Array:
        if name not in given:
            raise InputError(
                f"MaskedTokens: {option} {name!r} is no array of the input; choices: "
                f"{', '.join(sorted(given))}"
            )
        return given[name]
