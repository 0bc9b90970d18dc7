"""Curation within the step: the choice of `data.curation`, and training on what it kept."""

import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl.context import Context
from mmrl.data import curation
from mmrl.objectives import curated_selection as selection
from mmrl.objectives.curated_contrastive import CuratedContrastive
from mmrl.training import checkpoint, train
from mmrl.types import InputError
from tests import references, stubs
from tests.arrays import assert_close, on_mesh, unit
from tests.conftest import ROOT

N, K, D = 64, 5, 6


def starts(key, features, prototypes, support=0.85):
    """The starts that a key draws: by cluster, a place among its central samples."""
    distance = np.linalg.norm(features[:, None].astype(float) - prototypes, axis=2)
    cluster, near = distance.argmin(axis=1), distance.min(axis=1)
    central = np.zeros(K, np.int32)
    for k in np.unique(cluster):
        own = near[cluster == k]
        central[k] = (own <= np.quantile(own, support)).sum()
    return np.asarray(jax.random.randint(key, (K,), 0, jnp.maximum(central, 1)))


@pytest.mark.parametrize("size", [N, pytest.param(21, marks=pytest.mark.exhaustive)])
def test_the_choice_within_the_step_is_that_of_the_released_rule(size):
    features, prototypes = unit(size, D), unit(K, D, seed=1)
    call = jax.jit(selection.select, static_argnames=("outlier", "support", "most"))
    for options in ({"most": 3}, {"outlier": 0.8, "support": 0.5, "most": 1}, {"most": 1000}):
        got = call(features, prototypes, **options)
        np.testing.assert_array_equal(got, curation.select(features, prototypes, **options))
    key = jax.random.key(7)
    first = starts(key, features, prototypes)
    got = call(features, prototypes, most=2, key=key)
    expected = curation.select(features, prototypes, most=2, first=first)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.55, 1.0])
def test_the_choice_within_the_step_is_that_by_deviations(ratio):
    features, prototypes = unit(N, D), unit(K, D, seed=1)
    got = jax.jit(selection.select_by_deviation, static_argnames="ratio")(
        features, prototypes, ratio=ratio
    )
    expected = curation.select_by_deviation(features, prototypes, ratio=ratio)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("rule", ["select", "select_by_deviation"])
def test_absent_rows_change_no_choice_and_devices_do_not_either(rule):
    call = jax.jit(getattr(selection, rule))
    features, prototypes = unit(N, D), unit(K, D, seed=1)
    present = np.arange(N) % 3 > 0
    noisy = np.where(present[:, None], features, 9).astype(np.float32)
    got = call(noisy, prototypes, present=present)
    expected = getattr(curation, rule)(features[present], prototypes)
    np.testing.assert_array_equal(np.asarray(got)[present], expected)
    assert not np.asarray(got)[~present].any()
    for axes in ((2, 2, 2), (8, 1, 1)):
        spread = on_mesh(axes, noisy, present)
        again = call(spread[0], prototypes, present=spread[1])
        np.testing.assert_array_equal(jax.device_get(again), got)


def test_prototypes_move_to_the_means_of_their_samples_and_empty_ones_stay():
    features, kept = unit(N, D), np.arange(N) % 4 > 0
    prototypes = np.concatenate([unit(K - 1, D, seed=1), -features.mean(axis=0, keepdims=True)])
    prototypes[-1] /= np.linalg.norm(prototypes[-1])
    move = jax.jit(selection.move_prototypes)
    got = move(features, prototypes, kept=kept)
    wide, own = features[kept].astype(float), prototypes.astype(float)
    mass = np.exp(wide @ own.T / 0.5)
    for _ in range(3):
        mass /= mass.sum(axis=0, keepdims=True) * K
        mass /= mass.sum(axis=1, keepdims=True) * len(wide)
    cluster = mass.argmax(axis=1)
    expected = own.copy()
    for k in np.unique(cluster):
        expected[k] = references.unit(0.9 * own[k] + 0.1 * wide[cluster == k].mean(axis=0))
    assert_close(got, expected)
    alone = move(features, prototypes, kept=np.arange(N) == 0)
    assert (np.asarray(alone) == prototypes.astype(np.float32)).all(axis=1).sum() == K - 1


@pytest.mark.exhaustive
def test_k_means_finds_clusters_that_lie_apart():
    centres = np.eye(4, D, dtype=np.float32)
    features = references.unit(np.repeat(centres, 8, axis=0) + 0.05 * unit(32, D))
    call = jax.jit(selection.k_means, static_argnums=1)
    found = [call(features, 4, jax.random.key(n)) for n in range(8)]
    best = max(np.asarray(one @ centres.T).max(axis=0).min() for one in found)
    assert best > 0.98
    assert_close(np.linalg.norm(found[0], axis=1), np.ones(4))


def make(**options):
    given = {"examples": 2 * N, "prototypes": 3, "warm_up": 1, "most": 2, **options}
    widths = {"image": D, "text": D}
    return CuratedContrastive(**given, widths=widths, rngs=nnx.Rngs(params=0))


def call(module, step, index, *, train=True, present=None):
    image, text = (unit(N, D, seed=step + n) for n in (10, 20))
    key = jax.random.key(step) if train else None
    context = Context(step=jnp.int32(step), key=key, present=present)
    group = jnp.arange(N, dtype=jnp.int32)
    arrays = {"image": image, "text": text, "group": group, "index": index}
    return scored(module, context, arrays), image, text


@nnx.jit
def scored(module, context, arrays):
    return module(context=context, **arrays)


def test_the_loss_is_that_of_the_kept_samples_until_all_examples_were_seen():
    module = make()
    assert module.restricts_after(N) == 3 and module.restricts_after(N - 1) == 4
    shares, noted = [], []
    for step in range(4):
        index = jnp.arange(N, dtype=jnp.int32) + step * N
        made, image, text = call(module, step, index)
        kept = np.isin(index, module.kept()) if step in (1, 2) else np.ones(N, bool)
        scale = float(module.logit_scale())
        expected = references.contrastive(image[kept], text[kept], scale)
        assert_close(made.value, expected)
        shares.append(float(made.metrics["kept"][0] / made.metrics["kept"][1]))
        noted.append(int((np.asarray(module.kept()) >= 0).sum()))
    assert shares[0] == shares[3] == 1 and 0 < shares[1] < 0.5
    assert noted[0] == 0 and 0 < noted[1] < noted[2] == noted[3]
    before = module.kept()
    evaluated, *_ = call(module, 2, index, train=False)
    np.testing.assert_array_equal(module.kept(), before)
    assert float(evaluated.metrics["kept"][0]) == N


@pytest.mark.exhaustive
def test_absent_samples_are_never_kept():
    module = make(warm_up=0, rule="deviations", start="random")
    present = jnp.arange(N) % 2 == 0
    call(module, 0, jnp.arange(N, dtype=jnp.int32), present=present)
    kept = np.asarray(module.kept())
    assert (kept >= 0).any() and not (kept[kept >= 0] % 2).any()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rule": "best"}, "unknown rule of curated_contrastive 'best'; choices: quantiles, dev"),
        ({"start": "zero"}, "unknown start of curated_contrastive 'zero'"),
        ({"examples": 0}, "examples 0, prototypes 3, most 2, warm_up 1; expected at least 1"),
        ({"support": 0.9, "outlier": 0.8}, "support 0.9, outlier 0.8"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(InputError) as error:
        make(**options)
    assert text in str(error.value)


# Training draws what was kept.

AFTER, STEPS = 4, 8


@pytest.fixture(scope="module")
def trainer():
    get_config = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]

    def build(workdir, **changes):
        config = get_config("paper,smoke")
        config.data.length, config.batch_size, config.tensorboard = 80, 8, False
        config.total_steps, config.log_every, config.eval_every = STEPS, 1, 0
        config.checkpoint.every, config.checkpoint.keep, config.compile_cache = 2, 4, ""
        stubs.use(config)
        options = {"examples": 24, "warm_up": 1, "prototypes": 2, "most": 3}
        config.objectives = {"curated_contrastive": options}
        config.evaluators = {"retrieval": {"max_pairs": 8}}
        config.update(changes)
        return train.Trainer(config, workdir)

    with stubs.registered():
        yield build


def content(workdir):
    saved = checkpoint.Checkpoints(workdir, read_only=True)
    return checkpoint.digest(saved.read_arrays(["params", "variables", "opt_state", "step"]))


@pytest.mark.exhaustive
@pytest.mark.optax
def test_only_kept_samples_are_drawn_and_a_resumed_run_draws_the_same(
    trainer, tmp_path, monkeypatch
):
    rows, whole = [], tmp_path / "whole"
    draw = train.Prefetch.__next__

    def noted(feed):
        batch = draw(feed)
        rows.append(batch.rows)
        return batch

    monkeypatch.setattr(train.Prefetch, "__next__", noted)
    run = trainer(whole)
    run.run()
    first, later = np.concatenate(rows[:AFTER]), np.concatenate(rows[AFTER:])
    kept = run.drawn.rows
    assert set(later) <= set(kept) <= set(first[8:]) and len(kept) < 24
    assert set(first) - set(later) and len(rows) == STEPS
    for lost in ((8,), (4, 6, 8)):  # resumes after the restriction, and before it
        workdir, taken = shutil.copytree(whole, tmp_path / str(len(lost))), list(rows)
        for step in lost:
            shutil.rmtree(workdir / "checkpoints" / str(step))
        rows.clear()
        trainer(workdir).run()
        np.testing.assert_array_equal(rows, taken[-len(rows) :])
        assert content(workdir) == content(whole)
        rows[:] = taken


@pytest.mark.exhaustive
@pytest.mark.optax
def test_epochs_and_two_choices_are_refused(trainer, tmp_path):
    with pytest.raises(InputError) as error:
        trainer(tmp_path / "epochs", epochs=2)
    assert "config.epochs=2, but the objective curated_contrastive chooses" in str(error.value)
    given = {"examples": 8, "name": "curated_contrastive"}
    with pytest.raises(InputError) as error:
        trainer(tmp_path / "two", objectives={"one": given, "two": given})
    assert "one and two both choose the examples of training" in str(error.value)
