"""What towers of images and of vectors share: inputs that hold several elements per row."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.layers import Features
from mmrl.models.pool import base as pools
from mmrl.models.towers.base import LOCAL_HEADS, Tower
from mmrl.types import InputError

SET_FEATURES = ("elements", "element_mask", "set_attention")
"""Features that only sets have."""


class SetTower(Tower):
    """A tower that also encodes S elements per row, in inputs with an axis S after the batch axis.

    Without a mask the elements are independent of each other, such as crops of an image: every
    feature has the axes [B, S, ...]. With an array `mask` bool[B, S] they are a set. `pooled`
    [B, width] is then what the pooler `set_pool` makes of their pooled features, and heads start
    from it. What masked elements hold changes nothing. Local features keep the axes [B, S, ...]. A
    set has further features:

      elements       [B, S, width of the encoder], the pooled feature of each element
      element_mask   bool[B, S], the mask
      set_attention  f32[B, S], the weights of the elements, of a pooler that has weights

    In a tower with a `set_pool`, an element of any other input is a set of one: its pooled feature
    and its heads mean the same as those of sets.

    Args:
      encoder, others: as of Tower.
      set_pool: pooler of sets, a name or a mapping with its options, such as {"name":
        "gated_attention", "heads": 4}; see `mmrl.models.pool`. None: the tower reads no sets.
      chunk: elements of a row that are encoded at a time, while the backward pass encodes them
        again instead of keeping what was computed; 0: all, and nothing is encoded again. Encoders
        that learn batch statistics need all elements at once.

    Raises:
      InputError: a pooler that depends on the order of the elements, a negative chunk, or as of
        Tower.
    """

    # Not assigned where there is none: an attribute of a module holds either arrays or none.
    set_pool: pools.Pooler | None = None

    def __init__(
        self,
        *,
        encoder: Any,
        set_pool: str | Mapping[str, Any] | None = None,
        chunk: int = 0,
        **others: Any,
    ) -> None:
        if chunk < 0:
            raise InputError(f"chunk {chunk} of a {type(self).__name__} tower; expected 0 or more")
        self.chunk = chunk
        if set_pool is not None:
            numbers = {key: others.get(key, jnp.float32) for key in ("dtype", "param_dtype")}
            made = pools.make(
                set_pool,
                width=encoder.width,
                grid=(1, 1),
                **numbers,
                rngs=others["make_rngs"]("set_pool"),
            )
            if not made.unordered:
                raise InputError(
                    f"set_pool {set_pool!r} of a {type(self).__name__} tower depends on the order "
                    "of the elements; expected a pooler such as mean, attention or gated_attention"
                )
            self.set_pool = made
        super().__init__(encoder=encoder, **others)

    @property
    def width(self) -> int:
        """See Tower."""
        return self.encoder.width if self.set_pool is None else self.set_pool.width

    @property
    def features(self) -> tuple[str, ...]:
        """See Tower."""
        found = (*super().features, *(["local"] if self.local else []))
        if self.set_pool is None:
            return found
        weighs = ("set_attention",) if self.set_pool.weighs else ()
        return (*found, "elements", "element_mask", *weighs)

    def width_of(self, feature: str) -> int:
        """See Tower."""
        return self.encoder.width if feature == "elements" else super().width_of(feature)

    def check(self, where: str, wanted: Mapping[str, tuple[str, ...]]) -> None:
        """See Tower."""
        super().check(where, wanted)
        if (
            self.chunk
            and not self.frozen
            and jax.tree.leaves(nnx.state(self.encoder, nnx.BatchStat))
        ):
            raise InputError(
                f"config.towers.{where}.chunk={self.chunk} with an encoder that learns batch "
                "statistics, which are those of all elements; expected chunk 0, an encoder without "
                "batch norm, or a frozen tower"
            )

    def _encoded(
        self,
        x: jax.Array,
        rank: int,
        features: tuple[str, ...],
        *,
        mask: jax.Array | None = None,
        train: bool,
        key: jax.Array | None,
        **given: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """The wanted features of an input.

        Args:
          x: what the encoder reads: [B, ...] with `rank` axes, or [B, S, ...].
          mask: bool[B, S], where x is a set.
          given: further arrays for the encoder: [B, ...], or [B, S, ...] where x has elements.

        Raises:
          InputError: a set, and the tower has no pooler of sets.
        """
        options = self._asked(features)
        if x.ndim == rank:
            found = self._encode(self.encoder, x, train=train, key=key, **given, **options)
        else:
            x = x if mask is None else jnp.where(_like(mask, x), x, 0)
            keeps_local = self.embeds_local or bool({"local", *LOCAL_HEADS} & {*features})
            found = self._elements(x, given, keeps_local, train=train, key=key, **options)
        pooled, local, counted = found.pooled, found.local, None
        made = self._detailed(found, features)
        lacking = [feature for feature in features if feature in SET_FEATURES]
        if mask is None and lacking:
            raise InputError(
                f"feature {lacking[0]!r} of an input that is no set; expected an input such as "
                "images or bag"
            )
        if mask is not None:
            if self.set_pool is None:
                raise InputError(
                    f"a set for a {type(self).__name__} tower without set_pool; set "
                    "config.towers.NAME.set_pool, for example to mean or gated_attention"
                )
            if "elements" in features:
                made["elements"] = pooled
            if "element_mask" in features:
                made["element_mask"] = mask
            if "set_attention" in features:
                made["set_attention"] = self.set_pool.weights(pooled, mask)
            pooled = self.set_pool(pooled, mask)
            if self.embeds_local:
                counted = jnp.repeat(mask, local.shape[2], axis=1)
                local = local.reshape(len(local), -1, local.shape[-1])
        elif self.set_pool is not None:
            pooled = self.set_pool(pooled.reshape(-1, 1, pooled.shape[-1]))
            pooled = pooled.reshape(*found.pooled.shape[:-1], -1)
        made |= self._pooled(pooled, features, local, counted)
        return made | {
            name: self.heads[name](found.local) for name in LOCAL_HEADS if name in features
        }

    def _elements(
        self,
        x: jax.Array,
        given: Mapping[str, jax.Array | None],
        keeps_local: bool,
        *,
        train: bool,
        key: jax.Array | None,
        **options: Any,
    ) -> Features:
        """x [B, S, ...] -> Features whose arrays have the axes [B, S, ...].

        Args:
          given: arrays [B, S, ...].
          keeps_local: whether local features are wanted.
        """
        rows, count = x.shape[:2]
        size = self.chunk if 0 < self.chunk < count else count
        steps = -(-count // size)
        graphdef, state = nnx.split(self.encoder)

        def apart(array: jax.Array) -> jax.Array:
            """[B, S, ...] -> [steps, B * size, ...]; elements that fill up the last step are 0."""
            padding = [(0, 0), (0, steps * size - count), *[(0, 0)] * (array.ndim - 2)]
            array = jnp.pad(array, padding).reshape(rows, steps, size, *array.shape[2:])
            return jnp.swapaxes(array, 0, 1).reshape(steps, rows * size, *array.shape[3:])

        def together(array: jax.Array) -> jax.Array:
            array = array.reshape(steps, rows, size, *array.shape[2:])
            array = jnp.swapaxes(array, 0, 1).reshape(rows, steps * size, *array.shape[3:])
            return array[:, :count]

        def encode(encoder: Any, part: Any, own: jax.Array | None) -> Features:
            x, further = part
            found = self._encode(encoder, x, train=train, key=own, **further, **options)
            return found if keeps_local else found._replace(local=None)

        parts = jax.tree.map(apart, (x, dict(given)))
        if steps == 1:
            found = encode(self.encoder, jax.tree.map(lambda array: array[0], parts), key)
            return jax.tree.map(lambda array: together(array[None]), found)

        # The scan is not unrolled, so that the compiler has nothing to merge.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def again(pure: Any, part: Any, own: jax.Array | None) -> Features:
            return encode(nnx.merge(graphdef, pure), part, own)

        def step(_: None, one: Any) -> tuple[None, Features]:
            return None, again(pure, *one)

        pure = nnx.to_pure_dict(state)
        keys = None if key is None else jax.random.split(key, steps)
        return jax.tree.map(together, jax.lax.scan(step, None, (parts, keys))[1])


def _like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """mask bool[B, S] with as many axes as x [B, S, ...]."""
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
