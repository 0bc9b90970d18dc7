"""Bounded Attention: masked keys receive no weight."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.systems.check import Claim, Runs
from mmrl.models.fusion.co_attention import CoAttention
from mmrl.models.text.transformer import Transformer

NUMBERS = (3,)
EXPRESSED = "out of scope: a sampler of a diffusion model. The masks of attention serve it"
DIFFERS = "no images are drawn; that masked keys receive no weight is shown of encoder and fusion"
RUNS: dict[str, tuple[str, ...]] = {}

_TEXTS, _LENGTH, _WIDTH, _REGIONS = 6, 12, 32, 9


def values(runs: Runs) -> dict[str, float]:
    """Of one seed, with random weights."""
    rng = np.random.default_rng(runs.seed)
    tokens = jnp.asarray(rng.integers(4, 50, (_TEXTS, _LENGTH)), jnp.int32)
    lengths = rng.integers(3, _LENGTH, _TEXTS)
    mask = np.arange(_LENGTH)[None] < lengths[:, None]
    encoder = Transformer(
        vocab_size=50, length=_LENGTH, width=_WIDTH, depth=2, num_heads=2, rngs=nnx.Rngs(runs.seed)
    )
    attend = nnx.jit(lambda given: encoder(tokens, given, attention=True).attention)

    def weight(given: np.ndarray) -> float:
        attention = attend(jnp.asarray(given))
        return float(np.asarray(attention).max(axis=1)[~mask].max())

    fusion = CoAttention(
        widths={"image": _WIDTH, "text": _WIDTH},
        direction="both",
        make_rngs=lambda name: nnx.Rngs(runs.seed),
    )
    image = jnp.asarray(rng.normal(size=(_TEXTS, _REGIONS, _WIDTH)), jnp.float32)
    words, drawn = jnp.asarray(rng.normal(size=(2, _TEXTS, _LENGTH, _WIDTH)), jnp.float32)
    others = jnp.where(mask[..., None], words, drawn)
    fuse = nnx.jit(
        lambda text, given: fusion(("regions",), image=image, text=text, text_mask=given)
    )

    def change(given: np.ndarray) -> float:
        one, two = (fuse(text, jnp.asarray(given))["regions"] for text in (words, others))
        return float(jnp.abs(one - two).max())

    everywhere = np.ones_like(mask)
    return {
        "weight": weight(mask),
        "weight, without the mask": weight(everywhere),
        "change": change(mask),
        "change, without the mask": change(everywhere),
    }


CLAIMS = (
    Claim("greatest attention to a masked word, text encoder", "weight", most=0.0),
    Claim("the same without the mask", "weight, without the mask", least=1e-3),
    Claim("change of regions by masked words, fusion", "change", most=0.0),
    Claim("the same without the mask", "change, without the mask", least=1e-3),
)
