"""Layer-wise decay of the learning rate: the factor of every parameter of every encoder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmrl.training import initial, learner, optim
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests import stubs, toys

DECAY = 0.5
SIZE = {"width": 32, "depth": 3, "num_heads": 2}


def layout(**image):
    """Of a config with another image tower, which is not compiled."""
    config = toys.without_copies(toys.config())
    config.towers.text.update({**SIZE, "convolution": 3, "embedding_norm": True})
    config.towers.image = {
        "size": 32,
        "heads": {"embedding": 32, "regions": 32},
        **({"name": "vit", "patch_size": 8, **SIZE} | image),
    }
    return learner.layout(config, toys.one_device())


def factors(placed, decay=DECAY):
    """path -> factor."""
    return initial.by_path(optim.layer_factors(placed.params, placed.layers, decay))


def of_vit(path, depth=3):
    """The layer of a parameter of a transformer, by the rule of BEiT."""
    inner = path.partition("/encoder/")[2]
    if re.match(r"(patch|stem|position|cls|token|convolution|embedding_norm)(/|$)", inner):
        return 0
    block = re.match(r"stack/block_(\d+)/", inner)
    return int(block[1]) + 1 if block else depth + 1


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "image",
    [
        {"pool": "cls", "region_layer": 1},
        {"pool": "attention", "stem": "convolution"},
        {"pool": "zones", "posemb": "sincos2d"},
    ],
)
def test_blocks_of_both_transformers_count_from_the_heads_down(image):
    found = factors(layout(**image))
    assert {path.split("/")[0] for path in found} == {"towers", "objectives"}
    for path, factor in found.items():
        assert factor == DECAY ** (4 - of_vit(path)), path
    layers = {of_vit(path) for path in found if path.startswith("towers/image/encoder")}
    assert layers == {0, 1, 2, 3, 4}
    assert found["towers/image/heads/embedding/out/kernel"] == 1
    assert found["towers/text/encoder/convolution/kernel"] == DECAY**4
    assert found["objectives/global_contrastive/logit_scale/log"] == 1


def test_every_tower_counts_its_own_blocks():
    found = factors(layout(depth=1))
    assert found["towers/image/encoder/patch/kernel"] == DECAY**2
    assert found["towers/text/encoder/token/embedding"] == DECAY**4


def test_blocks_of_a_resnet_count_through_its_stages():
    image = {"name": "resnet", "depth": 18, "width": 8, "norm": "group", "small_stem": True}
    config = toys.without_copies(toys.config())
    config.towers.image = {"size": 32, "heads": {"embedding": 32, "regions": 32}, **image}
    found = factors(learner.layout(config, toys.one_device()))
    for path, factor in found.items():
        if not path.startswith("towers/image/"):
            continue
        inner = path.removeprefix("towers/image/encoder/")
        block = re.match(r"stage_(\d)_block_(\d+)/", inner)
        layer = 9
        if block:  # two blocks in each of four stages
            layer = 2 * (int(block[1]) - 1) + int(block[2]) + 1
        elif re.match(r"stem(_norm)?/", inner):
            layer = 0
        assert factor == DECAY ** (9 - layer), path


def test_scanned_blocks_get_the_factors_of_single_ones():
    plain, scanned = factors(layout()), factors(layout(scan_layers=True))
    blocks = [path for path in scanned if "image/encoder/stack/blocks/" in path]
    assert blocks
    for path in blocks:
        each = [plain[path.replace("blocks", f"block_{i:02d}")] for i in range(3)]
        assert scanned[path].shape[0] == 3 and scanned[path].size == 3
        np.testing.assert_array_equal(scanned[path].ravel(), np.float32(each))
    others = set(scanned) - set(blocks)
    assert others and all(scanned[path] == plain[path] for path in others)


def test_without_decay_every_factor_is_one_and_no_layers_are_needed():
    placed = layout(scan_layers=True)
    assert all(np.all(factor == 1) for factor in factors(placed, 1.0).values())
    params = placed.params
    optim.layer_factors(params, {}, 1.0)
    with pytest.raises(InputError, match=r"towers.image does not state its layers"):
        optim.layer_factors(params, {"text": placed.layers["text"]}, 0.9)
    for decay in (0, -1, 1.5):
        with pytest.raises(InputError, match="expected above 0 and at most 1"):
            optim.layer_factors(params, placed.layers, decay)


@pytest.mark.default_cases(1)
@pytest.mark.optax
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_update_has_the_product_of_both_factors(dtype):
    """Of a rule and of the layer; weight decay, too; nothing of a frozen parameter moves."""
    layers = {"image": (("patch",), ("blocks",), ("blocks",))}
    encoder = {"patch": jnp.ones(3), "blocks": jnp.ones((2, 3)), "norm": jnp.ones(3)}
    params = {"towers": {"image": {"encoder": encoder, "heads": {"x": jnp.ones(3)}}}}
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    settings = dict(toys.config().optimizer) | {
        "name": "sgd",
        "momentum": 0.0,
        "learning_rate": 0.5,
        "weight_decay": 0.25,
        "warmup_steps": 0,
        "end_fraction": 1.0,
        "clip_norm": 0.0,
        "layer_decay": DECAY,
        "rules": (
            {"match": ".*/heads/.*", "learning_rate": 4.0, "weight_decay": 0.0},
            {"match": ".*/norm", "freeze": True},
            {"match": ".*", "learning_rate": 2.0},
        ),
    }
    transform, _ = optim.make(settings, 10, params, layers)
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.75), params)
    updates, _ = transform.update(gradients, transform.init(params), params)
    new = initial.by_path(optax.apply_updates(params, updates))
    start = "towers/image/encoder/"
    expected = {
        f"{start}patch": 1 - 0.5 * 2 * DECAY**3 * (0.75 + 0.25),
        f"{start}norm": 1.0,
        "towers/image/heads/x": 1 - 0.5 * 4 * 0.75,
    }
    for path, value in expected.items():
        np.testing.assert_array_equal(np.float32(new[path]), value)
    moved = 1 - np.float32([[2 * 0.5 * DECAY**2], [2 * 0.5 * DECAY]])
    np.testing.assert_array_equal(np.float32(new[f"{start}blocks"]), np.repeat(moved, 3, axis=1))
    assert all(leaf.dtype == dtype for leaf in new.values())


def test_a_run_refuses_decay_for_an_encoder_without_layers():
    with stubs.registered():
        config = stubs.use(toys.config(objectives={"global_contrastive": {}}))
        config.optimizer.layer_decay = 0.75
        batch = toys.batches(config)[0]
        with pytest.raises(InputError, match="does not state its layers"):
            TrainStep(config, toys.one_device(), batch)
