"""Short presets of systems: two steps of each, and equal losses however computed."""

import re

import jax
import numpy as np
import pytest

from mmrl import presets
from mmrl.devices import sharding
from mmrl.training.step import TrainStep
from tests import stubs, toys
from tests.arrays import assert_close
from tests.conftest import ROOT
from tests.test_distributed import finish, read_lines, start_two, train_here

FAMILIES = {
    "rad_dino": {"self_distillation", "masked_patches", "koleo"},
    "swav": {"swapped_prediction"},
    "mae": {"reconstruction"},
    "mmclip": {"global_contrastive", "prompts", "sentence_contrastive", "entities", "patches"},
    "dcvlp": {"global_contrastive", "regions", "masked_text", "matching"},
    "m3ae": {"global_contrastive", "words", "patches", "matching"},
    "prd": {"global_contrastive", "local_contrastive", "perturbed_discrimination"},
    "convirt": {"global_contrastive"},
    "biomedclip": {"global_contrastive"},
    "chexficient": {"curated_contrastive"},
    "kg_words": {"findings", "graph_regulariser"},
}


# One of each family of objectives; the others are trained by -m exhaustive.
QUICK = ("rad_dino", "swav", "m3ae", "chexficient")
LABELLED = ("kg_words",)  # needs labels, which the toy corpus lacks


def step_of(name, devices=1, **changes):
    """The step of the variant "smoke" of a preset, for batches of the toy corpus."""
    config = presets.load(f"{ROOT / 'configs' / 'systems' / name}.py:smoke")
    colour = "rgb" if config.towers.image.get("channels") == 3 else "as_stored"
    toys.changed(config, data__label_names=(), data__colour=colour, **changes)
    tokenizers = toys.tokenizers(config)
    if tokenizers:
        config.towers.text.vocab_size = toys.tokenizer().vocab_size
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:devices])
    batches = toys.batches(config, 2)
    return TrainStep(config, mesh, batches[0]), batches


@pytest.mark.optax
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive)
        for name in FAMILIES
        if name not in LABELLED
    ],
)
def test_presets_train_two_steps(name):
    step, batches = step_of(name)
    state = jax.device_put(jax.device_get(stubs.start(step)), step.shardings)
    before = jax.device_get(state["params"])
    for batch in batches:
        state = step(state, sharding.to_global(batch, sharding.batch_sharding(step.mesh)))
    total, weight = jax.device_get(state["metrics"])["loss"]
    assert np.isfinite(total / weight) and int(state["nonfinite_step"]) == -1
    losses = {one.removesuffix("/loss") for one in state["metrics"] if one.endswith("/loss")}
    assert losses == FAMILIES[name]
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max() > 0, before, jax.device_get(state["params"])
    )
    still = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, one in jax.tree.leaves_with_path(moved)
        if not one
    ]
    # Of a fusion with one block whose regions alone are read, words change nothing; nor does the
    # bias of keys, which adds the same number to all logits of a query. The toys have no labels.
    known = r"fusions/seen/words_|.*/key/bias$|objectives/prompts/"
    still = [one for one in still if not re.match(known, one)]
    assert not still


@pytest.mark.exhaustive  # tests/test_wiring.py and test_self_supervision.py show it of others
@pytest.mark.optax
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in LABELLED])
def test_micro_batches_and_devices_give_the_same_gradient(name):
    found = []
    for devices, count in ((1, 1), (2, 1), (8, 2)):
        step, (batch, _) = step_of(name, devices, gradient_cache=count)
        start = jax.device_get(stubs.start(step))
        if "average" in start:
            start["average"] = jax.tree.map(lambda leaf: 0.5 * leaf, start["params"])
        placed = sharding.to_global(batch, sharding.batch_sharding(step.mesh))
        state = jax.device_put(start, step.shardings)
        found.append(jax.device_get(step.loss_and_gradients(state, placed)))
    for other in found[1:]:
        assert_close(other, found[0], floor=1e-1)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[0][1]["towers"]["image"]))


CONFIG = """
from configs.systems import {name}

def get_config():
    config = {name}.get_config("smoke")
    config.total_steps, config.log_every, config.eval_every = 3, 1, 0
    config.checkpoint.every, config.data.length = 1000, 150
    config.optimizer.warmup_steps = 1
    config.evaluators, config.validation_loss = {{}}, False
    config.compile_cache, config.tensorboard = "", False
    if "curated_contrastive" in config.objectives:  # chooses in the first two steps
        config.objectives.curated_contrastive.update({{"examples": 32, "warm_up": 0, "most": 6}})
    return config
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_train_as_one_does(name, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(name=name))
    train_here(tmp_path, tmp_path / "one")
    finish(start_two(tmp_path, tmp_path / "two"), 0)
    one, two = (read_lines(tmp_path / folder) for folder in ("one", "two"))
    assert list(two) == list(one) == [1, 2, 3]
    for step, figures in two.items():
        for measure, value in figures.items():
            expected = one[step][measure]
            assert value == (expected and pytest.approx(expected, rel=1e-4)), (step, measure)
