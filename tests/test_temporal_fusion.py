"""The fusion of a current and a prior image: published weights, absent priors, training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl import wiring
from mmrl.devices import sharding
from mmrl.models.convert import poolers
from mmrl.models.fusion.temporal import Temporal
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests import stubs, toys
from tests.arrays import assert_close, randomized
from tests.published import Torch, biovil_t

B, R, INNER, WIDTH = 3, 9, 10, 8
WIDTHS = {"current": INNER, "prior": INNER}
THERE = np.array([True, False, True])
FEATURES = ("pooled", "regions", "embedding", "course")


def make(rngs: Any = None, **options: Any) -> Temporal:
    given = {"width": WIDTH, "num_heads": 4, "heads": {"embedding": 4, "course": 2}, **options}
    return Temporal(widths=WIDTHS, **given, make_rngs=lambda name: rngs or nnx.Rngs(0))


def regions(seed: int = 0) -> np.ndarray:
    """Of current and prior images, f32[2, B, R, INNER]."""
    return np.random.default_rng(seed).normal(size=(2, B, R, INNER)).astype(np.float32)


@functools.cache
def gradients() -> Any:
    """(current, prior, present) -> features, and gradients for parameters and both images."""
    graphdef, state = nnx.split(randomized(make))
    pure = nnx.to_pure_dict(state)

    def loss(pure: Any, current: Any, prior: Any, present: Any) -> Any:
        module = nnx.merge(graphdef, pure)
        made = module(FEATURES, current=current, prior=prior, prior_present=present)
        return sum(jnp.sum(jnp.sin(x)) for x in made.values()), made

    call = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return functools.partial(call, pure)


def test_published_weights_give_published_features():
    """Of the pair of images, and of a row without a prior one."""
    torch, (current, prior) = Torch(), regions()
    static, before = (
        torch.linear("backbone_to_vit", x.astype(np.float64), WIDTH, bias=False)
        for x in (current, prior)
    )
    inner = Torch(1)
    changed = biovil_t(inner, static, before, (3, 3))
    missing = torch.tensor("missing_previous_emb", 1, WIDTH, 1, 1)
    named = {f"vit_pooler.{name}": value for name, value in inner.tensors.items()}
    weight = "backbone_to_vit.weight"
    named |= torch.tensors | {weight: torch.tensors[weight][:, :, None, None]}
    named["encoder.conv1.weight"] = np.zeros(3)
    options, params = poolers.biovil_t_fusion(named, num_heads=4)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(heads={}, **options)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, nnx.to_pure_dict(state)
    )
    module = nnx.merge(graphdef, params)
    found = jax.jit(lambda **given: module(("pooled", "regions"), **given))(
        current=current, prior=prior, prior_present=THERE
    )
    other = np.where(THERE[:, None, None], changed, missing.reshape(1, 1, WIDTH))
    expected = np.concatenate([static, other], axis=2)
    assert_close(found["regions"], expected)
    assert_close(found["pooled"], expected.mean(axis=1))


def test_what_an_absent_prior_holds_changes_no_bit():
    current, prior = regions()
    expected = gradients()(current, prior, THERE)
    for content in (0.0, np.nan, np.inf):
        other = np.where(THERE[:, None, None], prior, np.float32(content))
        found = gradients()(current, other, THERE)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    slope = np.asarray(expected[1][2])
    assert not slope[~THERE].any() and slope[THERE].any()


def test_a_row_without_a_prior_is_what_it_is_in_a_batch_without_any():
    current, prior = regions()
    (_, mixed), _ = gradients()(current, prior, THERE)
    (_, without), slopes = gradients()(current, prior, np.zeros(B, bool))
    for name in FEATURES:
        np.testing.assert_array_equal(mixed[name][~THERE], without[name][~THERE])
        assert np.abs(mixed[name][THERE] - without[name][THERE]).max() > 1e-3
    # The single-image path: the projected regions, and the embedding of what is missing.
    module = randomized(make)
    static = np.asarray(module.static(current))
    missing = np.broadcast_to(module.missing[...], static.shape)
    np.testing.assert_array_equal(without["regions"], np.concatenate([static, missing], axis=2))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes[0]["temporal"]))
    assert np.any(slopes[0]["missing"]) and np.any(slopes[0]["static"]["kernel"])


def test_features_widths_and_wrong_sizes():
    module = nnx.eval_shape(make)
    assert module.features == FEATURES
    assert [module.width_of(name) for name in FEATURES] == [16, 16, 4, 2]
    with pytest.raises(InputError, match="pool temporal: width 6, num_heads 4, depth 3"):
        make(width=6)
    with pytest.raises(InputError, match="expected another name than: pooled, regions"):
        make(heads={"regions": 3})


@pytest.fixture
def registered():
    with stubs.registered():
        yield


@pytest.mark.optax
def test_a_batch_without_priors_trains_as_the_single_image_does(registered):
    """Studies of the corpus have no times: no row has a prior, whatever its pixels are."""
    chosen = toys.config(batch_size=16)
    stubs.use(chosen)
    chosen.fusions = ml_collections.ConfigDict(
        {
            "fused": {
                "name": "temporal",
                "width": 8,
                "num_heads": 2,
                "depth": 1,
                "heads": {"embedding": chosen.towers.text.heads.embedding},
            }
        }
    )
    reads = {"image": "fused.embedding", "text": "text.embedding"}
    chosen.objectives = ml_collections.ConfigDict(
        {"global_contrastive": {"weight": 1.0, "reads": reads}}
    )
    chosen.evaluators = ml_collections.ConfigDict()
    chosen.optimizer.update({"name": "sgd", "warmup_steps": 0, "weight_decay": 0.0})
    configs.validate(chosen)
    batch = toys.batches(chosen)[0]
    assert not batch["prior.present"].any()
    step = TrainStep(chosen, toys.one_device(), batch)

    def updated(batch: Any) -> tuple[Any, Any]:
        """Parameters before and after one update."""
        state = stubs.start(step)
        before = jax.tree.map(np.asarray, state["params"])
        placed = sharding.to_global(batch, sharding.batch_sharding(step.mesh))
        return before, jax.tree.map(np.asarray, step(state, placed)["params"])

    before, after = updated(batch)
    noise = np.random.default_rng(0).integers(0, 256, batch["prior.pixels"].shape, np.uint8)
    _, other = updated({**batch, "prior.pixels": noise})
    jax.tree.map(np.testing.assert_array_equal, after, other)

    def changed(tree: Any, other: Any) -> list[bool]:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
        return [bool((new != old).any()) for new, old in pairs]

    own, old = after["fusions"]["fused"], before["fusions"]["fused"]
    assert all(changed([own[k] for k in ("static", "missing", "heads")],
                       [old[k] for k in ("static", "missing", "heads")]))  # fmt: skip
    assert not any(changed(own["temporal"], old["temporal"]))
    encoders = [params["towers"]["image"]["encoder"] for params in (after, before)]
    assert all(changed(*encoders))
    # Every row counts in the loss, although its prior is absent.
    names = wiring.wire(chosen)[0].inputs_of(wiring.Name("fused", "", "embedding"))
    assert "prior" not in names
