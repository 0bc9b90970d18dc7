"""The published method: its numbers, its sizes, and that its recipe trains and is planned."""

import collections
import functools
import json
import math
import re

import jax
import numpy as np
import pytest

from configs.recipes import paper
from mmrl import config as configs
from mmrl import wiring
from mmrl.data import perturb
from mmrl.data.batches.pipeline import batch_shapes
from mmrl.data.inputs import base as inputs
from mmrl.data.perturb.mix import Mix
from mmrl.training import learner, optim
from mmrl.training.step import TrainStep
from tests import commands, toys

RECIPE = "configs/recipes/paper.py"

# The authors' training script: optimizer, losses, sizes and data. K = 9: one copy of each kind.
PUBLISHED = {
    "batch_size": 12,
    "total_steps": 150 * 6000 // 12,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.0015,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 5e-4,
    "optimizer.warmup_steps": 0,
    "optimizer.end_fraction": 0.0,
    "optimizer.clip_norm": 0.0,
    "objectives.global_contrastive.weight": 1.0,
    "objectives.global_contrastive.temperature": 0.07,
    "objectives.local_contrastive.weight": 0.1,
    "objectives.local_contrastive.temperatures": (4.0, 5.0, 10.0),
    "objectives.perturbed_discrimination.weight": 0.1,
    "objectives.perturbed_discrimination.temperature": 0.07,
    "towers.image.name": "resnet",
    "towers.image.depth": 50,
    "towers.image.size": 224,
    "towers.image.region_stage": 3,
    "towers.image.heads.embedding.width": 128,
    "towers.image.heads.regions": 768,
    "towers.text.length": 50,
    "towers.text.word_layers": 4,
    "towers.text.heads.embedding.width": 128,
    "towers.text.heads.words": 768,
    "data.num_perturbed": 9,
    "data.views": "each",
    "data.crop_scale": (1.0, 1.0),
    "data.brightness": 0.0,
    "data.contrast": 0.0,
}

# Parameters of a layer of BERT-base: 4 projections and an MLP of 3,072 with biases, and two norms.
LAYER = 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 2 * 2 * 768


@functools.cache
def published():
    return paper.get_config("prepared")


@functools.cache
def full_size():
    return learner.layout(published(), toys.one_device())


@pytest.mark.parametrize("variant", ["", "prepared", "phantom"])
def test_the_recipe_states_the_published_numbers(variant):
    config = paper.get_config(variant)
    found = dict(configs.flatten(config.to_dict()))
    assert {key: found[key] for key in PUBLISHED} == PUBLISHED
    assert set(config.objectives) == {
        "global_contrastive",
        "local_contrastive",
        "perturbed_discrimination",
    }
    if variant:
        assert config.data.sections == ("findings",)


def test_every_report_gets_one_copy_of_each_of_the_nine_kinds():
    data = published().data
    mix = Mix.from_config(data.perturbations, data.perturbation_curriculum)
    kinds = mix.draw(0, data.num_perturbed, np.arange(5, dtype=np.uint64))
    names = [sorted(perturb.KINDS[kind] for kind in row) for row in kinds]
    assert names == [sorted(data.perturbations)] * 5
    assert len(data.perturbations) == 9


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_the_towers_have_the_published_sizes():
    towers = full_size().params["towers"]
    # torchvision's ResNet-50 without its classifier, whose first kernel reads one channel of three.
    assert count(towers["image"]["encoder"]) == 25_557_032 - 2_049_000 - 2 * 64 * 7 * 7
    text = towers["text"]["encoder"]
    assert count(text["stack"]) == 12 * LAYER
    assert count(text["token"]) == 30_522 * 768
    assert full_size().grids == {"image": (14, 14)}  # 224 / 16, after layer3
    assert towers["image"]["heads"]["regions"]["out"]["kernel"].shape == (1024, 768)
    assert count(towers["image"]["heads"]["regions"]) == 1024 * 768  # no bias
    for tower in ("image", "text"):
        assert towers[tower]["heads"]["embedding"]["out"]["kernel"].shape[1] == 128


@pytest.mark.exhaustive
def test_a_step_of_full_size_costs_what_its_encoders_cost():
    """Forward and backward pass: 6 FLOPs for each token and weight of a text layer, and each MAC.

    It is traced, not compiled. Attention adds to this, and the last layer saves, because copies
    need it at their first token alone.
    """
    config = paper.get_config("phantom")
    shapes = batch_shapes(inputs.make(config, wiring.wire(config)[0]), config.batch_size)
    step = TrainStep(config, toys.one_device(), shapes)
    texts = 12 * (1 + 9)
    image = 12 * 4.09e9  # MACs of torchvision's ResNet-50 at 224 pixels
    assert step.model_flops() == pytest.approx(6 * (texts * 50 * 12 * LAYER + image), rel=0.1)


def test_all_parameters_decay_as_in_torch():
    """Without gradients the first update is -rate * decay * parameter."""
    settings = published().optimizer
    params = {"towers": {"norm": {"scale": 2.0, "bias": -1.0}}, "objectives": {"log": 3.0}}
    params = jax.tree.map(np.float32, params)
    transform, _ = optim.make(settings, 10, params)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = transform.update(zero, transform.init(params), params)
    for update, parameter in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert update == pytest.approx(-0.0015 * 5e-4 * parameter, rel=1e-6)


@pytest.mark.parametrize("epoch", [0, 1, 75, 149, 150])
def test_the_learning_rate_is_the_published_one_at_the_start_of_every_epoch(epoch):
    rate = optim.schedule(published().optimizer, published().total_steps)
    expected = 0.0015 * 0.5 * (1 + math.cos(math.pi * epoch / 150))
    assert float(rate(500 * epoch)) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_cut_by_tokens_is_never_later_than_one_after_50_words():
    """A word has a token or more, so that 50 tokens hold at most 48 words and the two marks."""
    length = published().towers.text.length
    words = [toys.WORDS[i % len(toys.WORDS)] for i in range(60)]
    whole, first_50 = " ".join(words), " ".join(words[:50])
    one, other = (toys.tokenizer().encode(text, length) for text in (whole, first_50))
    assert one.truncated and other.truncated
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert len(re.findall(r"\w+", toys.tokenizer().decode(one.tokens))) <= 48


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/test_cli.py trains the default preset in the same way
@pytest.mark.optax
def test_the_shrunken_recipe_trains(tmp_path, capsys):
    workdir = tmp_path / "run"
    status = commands.run_here(
        "mmrl.main",
        f"--config={RECIPE}:phantom,smoke",
        f"--workdir={workdir}",
        f"--config.compile_cache={commands.COMPILATIONS.name}",
        "--nosummary",
        "--config.eval_every=0",
        "--config.evaluators={'retrieval': {'max_pairs': 32}}",
    )
    assert status == 0, capsys.readouterr().err
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    logged = collections.defaultdict(list)
    for line in map(json.loads, lines):
        logged[line["kind"]].append(line)
    first, *_, last = logged["train"]
    assert (first["step"], last["step"]) == (5, 20)
    assert last["loss"] < first["loss"]
    assert last["loss"] == pytest.approx(
        last["global_contrastive/loss"]
        + 0.1 * last["local_contrastive/loss"]
        + 0.1 * last["perturbed_discrimination/loss"],
        rel=1e-4,
    )
    for kind in published().data.perturbations:
        assert last[f"perturbed_discrimination/{kind}/share"] == pytest.approx(1 / 9)
