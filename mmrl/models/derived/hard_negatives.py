"""Another text for each image, or another image for each text: one that is easily confused."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.context import Context
from mmrl.models.derived.base import Arrays, Derived
from mmrl.models.layers import check_choice
from mmrl.types import InputError
from mmrl.vectors import l2_normalize

DRAWS = ("sampled", "hardest", "uniform")


class HardNegatives(Derived):
    """Selects for each row the text, or image, of another row (Li et al. 2021, ALBEF, section 3.2).

    The other row is drawn from the softmax of the similarities. It has both inputs and is of
    another duplicate group. Rows without such a row have `present` False.

    Args:
      side: what is selected: text (for each image) or image (for each text). The input that it
        carries on, `of`, is of the kind of what it reads as that.
      draw: sampled (from the softmax), hardest (the most similar) or uniform (any other row).
      temperature: by which similarities are divided before the softmax.
      kinds: of the inputs of `of`, and of what is read.

    Raises:
      InputError: an unknown choice, a temperature that is not above 0, or `of` of another kind.
    """

    of: ClassVar[str] = "text"
    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    batch: ClassVar[Mapping[str, str]] = {"group": "group", "index": "index"}
    couples: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def __init__(
        self,
        *,
        side: str = "text",
        draw: str = "sampled",
        temperature: float = 0.07,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        check_choice("HardNegatives", "side", side, ("text", "image"))
        check_choice("HardNegatives", "draw", draw, DRAWS)
        if not temperature > 0:
            raise InputError(f"HardNegatives: temperature {temperature}; expected more than 0")
        of, kind = ((kinds or {}).get(key, "") for key in ("of", side))
        if of != kind and kind:
            raise InputError(
                f"HardNegatives: side {side} with `of` an input of {of or 'no'} towers; expected "
                f"one of {kind} towers, as what is read as {side}"
            )
        self.side, self.draw, self.temperature = side, draw, temperature

    def __call__(
        self,
        *,
        context: Context,
        given: Arrays,
        image: jax.Array,
        text: jax.Array,
        group: jax.Array,
        index: jax.Array,
    ) -> dict[str, jax.Array]:
        """rows i32[B] and present bool[B]; without a gradient.

        Args:
          image, text: f[B, D], normalised or not. group: i32[B], duplicate groups.
        """
        one, other = (image, text) if self.side == "text" else (text, image)
        one, other = (l2_normalize(jax.lax.stop_gradient(x)) for x in (one, other))
        # Absent rows may contain anything, even what is not finite.
        scores = one @ other.T / self.temperature  # B B
        offered = group[:, None] != group[None, :]
        if context.present is not None:
            offered &= context.present[:, None] & context.present[None, :]
        if self.draw == "uniform":
            scores = jnp.zeros_like(scores)
        scores = jnp.where(offered, scores, -jnp.inf)
        if self.draw == "hardest":
            rows = jnp.argmax(scores, axis=1)
        else:
            rows = jax.vmap(jax.random.categorical)(context.row_keys(index), scores)
        return {"rows": rows.astype(jnp.int32), "present": offered.any(axis=1)}
