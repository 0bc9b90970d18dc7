"""Co-attention of the regions of an image and the tokens of a text."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import chunks
from mmrl.models.cross_attention import CrossBlock
from mmrl.models.fusion.base import Fusion, Heads
from mmrl.models.layers import LayerNorm, Remat, check_choice, dense
from mmrl.models.stack import REMAT_POLICIES
from mmrl.types import InputError

DIRECTIONS = ("text", "both")
POOLS = ("first", "mean", "both")


class CoAttention(Fusion):
    """Blocks of self-attention, cross-attention and an MLP over words and regions.

    With direction "text" the words attend to the regions, which stay as they are, as in ALBEF (Li
    et al. 2021, section 3.1). With "both", regions also attend to words; both read what the block
    before made, as in METER (Dou et al. 2022, section 3.1) and M3AE (Chen et al. 2022, section
    2.1). The norms come before the branches, and one more after the last block.

    With `gate`, tanh of a learned number that starts at 0 multiplies each branch, and there is no
    norm after the last block (Flamingo; Alayrac et al. 2022, section 3.1.2): `words` and `regions`
    are at first what was read, bit for bit.

    Features, with the widths of what is read or `width`:
      words    [B, L, width of the text], padding included
      regions  [B, R, width of the image]
      pooled   [B, D], as `pool` says
      HEAD     f32[B, C], an affine function of `pooled`, or f32[B, L or R, C] of the feature that
               the head states as `of`

    Args:
      widths, dtype, param_dtype, make_rngs: as of Fusion.
      heads: name -> features or options, see `fusion.base.Heads`; with `of`, what they start from:
        pooled, words or regions.
      depth: number of blocks.
      num_heads: attention heads; they divide the widths.
      width: features of words and regions, which are projected first; 0: they keep their own.
      mlp_dim: hidden features of the MLPs; 0: 4 times the width.
      direction: text (words attend to regions) or both (regions also attend to words).
      self_attention: whether blocks attend within words, and within regions, first.
      gate: whether gates that start at 0 multiply all branches.
      pool: first (the first token of the text), mean (over the words of the text, marks included)
        or both (the mean over words and the mean over regions, side by side).
      region_block: the block whose result the feature `regions` is, without a later norm, with
        direction both; 1: the first, 0: the last. M3AE decodes pixels from the third of six (the
        public code; the paper says in section 2.2 that pixels need features of a lower level).
      image_layer: which layer of an image of which several are read, such as image.layers; None:
        there is one.
      dropout: rate on each branch, in training.
      remat: what the backward pass recomputes of a block: none, full (all of it) or dots (all but
        the results of dense layers).
      chunk: rows that are fused at a time and computed again in the backward pass; 0: all at once.

    Raises:
      InputError: an unknown choice, sizes that do not fit together, or a gate with `width`.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "image": "image.local",
        "text": "text.local",
        "text_mask": "text.mask",
    }

    def __init__(
        self,
        *,
        widths: Mapping[str, int],
        heads: Mapping[str, Any] | None = None,
        depth: int = 2,
        num_heads: int = 4,
        width: int = 0,
        mlp_dim: int = 0,
        direction: str = "text",
        self_attention: bool = True,
        gate: bool = False,
        pool: str = "first",
        region_block: int = 0,
        image_layer: int | None = None,
        dropout: float = 0.0,
        remat: Remat = "none",
        chunk: int = 0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        make_rngs: Callable[[str], nnx.Rngs],
    ) -> None:
        check_choice("CoAttention", "direction", direction, DIRECTIONS)
        check_choice("CoAttention", "pool", pool, POOLS)
        check_choice("CoAttention", "remat", remat, ("none", *REMAT_POLICIES))
        if depth < 1 or chunk < 0 or min(width, mlp_dim) < 0:
            raise InputError(
                f"CoAttention: depth {depth}, width {width}, mlp_dim {mlp_dim}, chunk {chunk}; "
                "expected at least one block and no negative number"
            )
        if not 0 <= region_block <= (depth if direction == "both" else 0):
            raise InputError(
                f"CoAttention: region_block {region_block} of {depth} blocks with direction "
                f"{direction}; expected 0, or one of them with direction both"
            )
        if gate and width:
            raise InputError(
                f"CoAttention: gate with width {width}; expected width 0, because a gate passes "
                "words and regions on as they are"
            )
        numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.both, self.pool, self.depth = direction == "both", pool, depth
        self.remat, self.chunk, self.image_layer = remat, chunk, image_layer
        self.region_block = region_block
        own = {"words": width or widths["text"], "regions": width or widths["image"]}
        other = {"words": own["regions"], "regions": own["words"]}
        self.changes = ("words", "regions") if self.both else ("words",)
        self.projects, self.has_norm = width > 0, not gate
        for name, given in (("words", widths["text"]), ("regions", widths["image"])):
            rngs = make_rngs(name)
            if self.projects:
                project = dense(given, width, ("embed", "joint"), **numbers, rngs=rngs)
                setattr(self, f"{name}_projection", project)
            if name not in self.changes:
                continue
            for index in range(depth):
                block = CrossBlock(
                    own[name],
                    other[name],
                    num_heads,
                    mlp_dim or 4 * own[name],
                    self_attention=self_attention,
                    gated=gate,
                    dropout=dropout,
                    **numbers,
                    rngs=rngs,
                )
                # Attributes instead of a list, which would put integer keys into the parameters.
                setattr(self, f"{name}_{index:02d}", block)
            if self.has_norm:
                norm = LayerNorm(own[name], param_dtype=param_dtype, rngs=rngs)
                setattr(self, f"{name}_norm", norm)
        pooled = own["words"] + (own["regions"] if pool == "both" else 0)
        self.heads = Heads(
            "CoAttention fusion",
            heads or {},
            {"pooled": pooled, **own},
            **numbers,
            make_rngs=lambda name: make_rngs(f"heads/{name}"),
        )

    def __call__(
        self,
        wanted: tuple[str, ...],
        *,
        image: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Fuses each row on its own.

        Args:
          image: [B, R, width], or [B, n, R, width] of n layers. text: [B, L, width].
          text_mask: bool[B, L]; the other tokens change neither `regions` nor `pooled`, nor the
            words that the mask marks.
          key: of dropout; None, or without `train`: no dropout.

        Returns:
          feature -> [B, ...].

        Raises:
          ValueError: several layers of an image and no `image_layer`.
        """
        if image.ndim == 4:
            if self.image_layer is None and image.shape[1] > 1:
                raise ValueError(
                    f"image {image.shape} has {image.shape[1]} layers; set the option image_layer"
                )
            image = image[:, self.image_layer or 0]
        # A key for each row, of which a chunk uses its first.
        keys = jax.random.split(key, len(text)) if train and key is not None else None
        fused = functools.partial(self._fused, wanted)
        return chunks.by_rows(fused, image, text, text_mask, keys, chunk=self.chunk)

    def _fused(
        self,
        wanted: tuple[str, ...],
        image: jax.Array,
        text: jax.Array,
        mask: jax.Array,
        keys: jax.Array | None,
    ) -> dict[str, jax.Array]:
        now = {"words": text, "regions": image}
        early: dict[str, jax.Array] = {}
        if self.projects:
            now = {name: getattr(self, f"{name}_projection")(x) for name, x in now.items()}
        masks = {"words": mask, "regions": None}
        for index in range(self.depth):
            found = dict(now)
            for name in self.changes:
                other = "regions" if name == "words" else "words"
                own = None
                if keys is not None:
                    own = jax.random.fold_in(keys[0], 2 * index + (name == "regions"))
                block = self._block(getattr(self, f"{name}_{index:02d}"))
                found[name] = block(now[name], now[other], masks[name], masks[other], own)
            now = found
            if index + 1 == self.region_block:
                early = {"regions": now["regions"]}
        if self.has_norm:
            now |= {name: getattr(self, f"{name}_norm")(now[name]) for name in self.changes}
        now["pooled"] = self._pooled(now, mask)
        return self.heads(now | early, wanted)

    def _block(self, block: CrossBlock) -> Callable[..., jax.Array]:
        if self.remat == "none":
            return block
        graphdef, params = nnx.split(block)

        def apply(params: Any, *arrays: Any) -> jax.Array:
            return nnx.merge(graphdef, params)(*arrays)

        remade = jax.checkpoint(apply, policy=REMAT_POLICIES[self.remat])
        return functools.partial(remade, nnx.to_pure_dict(params))

    def _pooled(self, now: Mapping[str, jax.Array], mask: jax.Array) -> jax.Array:
        words = now["words"]
        if self.pool == "first":
            return words[:, 0]
        counts = mask[..., None].astype(jnp.float32)
        total = (words.astype(jnp.float32) * counts).sum(axis=1)
        mean = (total / jnp.maximum(counts.sum(axis=1), 1.0)).astype(words.dtype)
        if self.pool == "mean":
            return mean
        regions = now["regions"]
        over = regions.astype(jnp.float32).mean(axis=1).astype(regions.dtype)
        return jnp.concatenate([mean, over], axis=-1)
