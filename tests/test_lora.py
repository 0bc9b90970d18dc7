"""Low-rank updates: their mathematics, what trains, what stays, and that all commands see them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl import encoder_folder, streams
from mmrl.devices import sharding
from mmrl.models.image.vit import Vit
from mmrl.training import checkpoint, initial, learner, lora, optim
from mmrl.training.predict import Predict
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests import commands, stubs, toys
from tests.arrays import assert_close, randomized
from tests.test_gradient_cache import batch_of
from tests.test_step import GLOBAL

LORA = {"rank": 3, "alpha": 6.0, "match": "(first|layer_0)/kernel"}
EVERY = {"rank": 3, "alpha": 4.5, "match": ".*kernel"}
ENCODER = "towers/text/encoder/"


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered():
        yield


def small(text=None, image=None, **changes):
    """A config of two stubs that compiles fast; further options of its towers."""
    chosen = stubs.use(toys.config(batch_size=16, objectives=GLOBAL), dropout=0.2)
    chosen.towers.text.update(text or {})
    chosen.towers.image.update(image or {})
    chosen.optimizer.warmup_steps = 0
    return toys.changed(chosen, **changes)


def make(config, devices=1, axes=None):
    axes = axes or {"data": -1, "fsdp": 1, "tensor": 1}
    return TrainStep(config, sharding.make_mesh(axes, jax.devices()[:devices]), batch_of(config))


def place(step, seed=0):
    return sharding.to_global(batch_of(step.config, seed), sharding.batch_sharding(step.mesh))


def trained(config, steps=2, start=None, **where):
    """Parameters by path before and after some steps, and the last state."""
    step = make(config, **where)
    state = step.init() if start is None else jax.device_put(start, step.shardings)
    before = by_path(state["params"])
    for seed in range(steps):
        state = step(state, place(step, seed))
    return before, by_path(state["params"]), jax.device_get(state)


def by_path(tree):
    return {path: np.asarray(leaf) for path, leaf in initial.by_path(tree).items()}


def random_updates(params, seed=0):
    """Parameters whose low-rank factors are random, so that an update is not zero."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)  # noqa: E731
    return {**params, "lora": jax.tree.map(draw, params["lora"])}


# The mathematics.


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("scan", [False, True])
def test_the_kernel_is_that_of_the_paper_for_every_shape_and_for_scanned_layers(scan):
    """W + alpha / rank * a b, with the axes of attention flattened into rows and columns."""
    encoder = randomized(
        lambda rngs: Vit(
            image_size=16, patch_size=8, width=8, depth=2, num_heads=2, scan_layers=scan, rngs=rngs
        )
    )
    made = lora.create(
        "here", encoder, EVERY, make_rngs=lambda path: nnx.Rngs(0), param_dtype=jnp.float32
    )
    own = nnx.to_pure_dict(nnx.state(encoder, nnx.Param))
    updates = {"towers": {"x": nnx.to_pure_dict(nnx.state(made, nnx.Param))}}
    params = random_updates({"towers": {"x": {"encoder": own}}, "lora": updates})
    found = by_path(lora.merged(params, {"x": 1.5})["towers"]["x"]["encoder"])
    factors = by_path(params["lora"]["towers"]["x"]["encoder"])
    kernels = {path for path in by_path(own) if path.endswith("kernel")}
    assert len(kernels) == 1 + 4 * (1 if scan else 2)
    # in -> out features of each kernel, whatever its axes.
    sides = {"qkv": (8, 24), "attention/out": (8, 8), "wide": (8, 32), "mlp/out": (32, 8)}
    for path, before in by_path(own).items():
        if path not in kernels:
            np.testing.assert_array_equal(found[path], before, err_msg=path)
            continue
        rows, columns = next((s for part, s in sides.items() if part in path), (64, 8))
        layers = 2 if scan and "stack" in path else 1
        a = factors[f"{path}/a"].reshape(layers, rows, 3).astype(np.float64)
        b = factors[f"{path}/b"].reshape(layers, 3, columns).astype(np.float64)
        expected = before.reshape(layers, rows, columns) + 1.5 * np.einsum("lir,lro->lio", a, b)
        np.testing.assert_allclose(found[path].reshape(expected.shape), expected, atol=1e-6)


def test_factors_start_as_in_the_paper_from_streams_of_their_own():
    config = small(text={"lora": EVERY})
    _, params, _ = learner.split(learner.make(config, streams.key(0, "init")))
    updates = by_path(params["lora"])
    assert updates and all(path.startswith("towers/text/encoder/") for path in updates)
    assert all((leaf == 0).all() == path.endswith("/b") for path, leaf in updates.items())
    first = updates["towers/text/encoder/first/kernel/a"]
    assert first.std() == pytest.approx(first.shape[0] ** -0.5, rel=0.1)
    # The other parameters do not know of them, and each depends on its own path alone.
    _, plain, _ = learner.split(learner.make(small(), streams.key(0, "init")))
    jax.tree.map(np.testing.assert_array_equal, plain["towers"], params["towers"])
    fewer = small(text={"lora": {**EVERY, "match": "layer_0/kernel"}})
    _, less, _ = learner.split(learner.make(fewer, streams.key(0, "init")))
    for path, leaf in by_path(less["lora"]).items():
        np.testing.assert_array_equal(leaf, updates[path])


def layout_and_params(config, updates=True):
    placed = learner.layout(config, toys.one_device())
    _, params, variables = learner.split(learner.make(config, streams.key(0, "init")))
    if updates:
        params = random_updates(params)
    return placed, params, variables


def test_updates_of_zero_change_no_bit():
    placed, params, _ = layout_and_params(small(text={"lora": EVERY}), updates=False)
    jax.tree.map(np.testing.assert_array_equal, placed.effective(params), params)


def test_merged_weights_encode_as_kernel_and_update_apart():
    """x W + alpha / rank (x a) b, computed without ever adding to W, against the tower."""
    config = small(text={"lora": EVERY}, average__evaluate=True)
    placed, params, variables = layout_and_params(config)
    tokens = batch_of(config)["text.tokens"]
    arrays = {"text.tokens": tokens, "text.mask": np.ones_like(tokens, bool)}
    found = placed.merge(params, variables).encode(
        arrays, train=False, wired=learner.Wiring.of({"text": "text"}, ["text.pooled"])
    )["text@text.pooled"]
    own, updates = (by_path(one["towers"]["text"]["encoder"]) for one in (params, params["lora"]))

    def apart(name, x):
        low = (x @ updates[f"{name}/kernel/a"]) @ updates[f"{name}/kernel/b"]
        return x @ own[f"{name}/kernel"] + 1.5 * low + own[f"{name}/bias"]

    x = np.tanh(apart("first", np.eye(len(own["first/kernel"]))[tokens]))
    expected = (x + np.tanh(apart("layer_0", x))).mean(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Training.


def untouched(kept):
    """Whether nothing of a path changes."""
    return {
        "lora": lambda path: path.startswith(ENCODER),
        "tower": lambda path: path.startswith("towers/text/"),
        "encoder": lambda path: path.startswith(ENCODER),
        "locked": lambda path: path.startswith("towers/image/encoder/"),
    }[kept]


OPTIONS = {
    "lora": {"text": {"lora": LORA}},
    "tower": {"text": {"frozen": True}},
    "encoder": {"text": {"frozen": "encoder"}},
    "locked": {"image": {"frozen": "encoder"}},
}


@pytest.mark.default_cases(1)
@pytest.mark.optax
@pytest.mark.parametrize("kept", OPTIONS)
def test_untouched_leaves_are_bit_identical_and_all_others_move(kept):
    config = small(**OPTIONS[kept], average__decay=0.9, average__evaluate=True)
    before, after, state = trained(config)
    stays = untouched(kept)
    assert any(map(stays, before))
    for path, leaf in before.items():
        assert (leaf == after[path]).all() == stays(path), path
    average = by_path(state["average"])
    assert all((average[path] == before[path]).all() for path in filter(stays, before))
    # The optimizer keeps nothing for what stays.
    moments = initial.by_path(state["opt_state"])
    for path in before:
        assert any(name.endswith(path) for name in moments) == (not stays(path)), path


@pytest.mark.exhaustive
def test_dropout_stays_on_in_an_encoder_with_updates_and_is_off_in_a_frozen_one():
    for options, drops in (({"lora": LORA}, True), ({"frozen": "encoder"}, False)):
        config = small(text=options, image={"frozen": "encoder"})
        placed, params, variables = layout_and_params(config, updates=drops)
        assert placed.frozen == ({"image"} if drops else {"image", "text"})
        module = placed.merge(params, variables)
        batch = {name: jnp.asarray(array) for name, array in batch_of(config).items()}
        losses = [
            float(module(batch, step=jnp.int32(0), train=True, key=jax.random.key(n))[0])
            for n in (0, 1)
        ]
        assert (losses[0] != losses[1]) == drops


def gradients(config, **where):
    step = make(config, **where)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), step.abstract)
    state["params"] = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), step.abstract["params"]
    )
    placed = jax.device_put(state, step.shardings)
    return jax.device_get(step.loss_and_gradients(placed, place(step)))


@pytest.mark.exhaustive
def test_eight_devices_and_gradient_caching_give_the_loss_and_gradients_of_one():
    """On a mesh whose axes all divide something."""
    options = {"text": {"lora": EVERY, "dropout": 0.0}, "image": {"lora": LORA, "dropout": 0.0}}
    loss, expected = gradients(small(**options))
    assert np.abs(expected["lora"]["towers"]["image"]["encoder"]["first"]["kernel"]["b"]).max() > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(expected["towers"]["text"]["encoder"]))
    axes = {"data": 2, "fsdp": 2, "tensor": 2}
    for changes, where in (
        ({}, {"devices": 8, "axes": axes}),
        ({"gradient_cache": 4}, {}),
    ):
        found = gradients(small(**options, **changes), **where)
        np.testing.assert_allclose(found[0], loss, rtol=1e-5)
        assert_close(found[1], expected, floor=1e-3)


@pytest.mark.optax
def test_a_restored_state_continues_to_the_same_bits(tmp_path):
    config = small(text={"lora": LORA}, average__decay=0.9, average__evaluate=True)
    step = make(config)
    state = step(step.init(), place(step, 0))
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(1, state, {}, {})
    saved.wait()
    whole = jax.device_get(step(state, place(step, 1)))
    state, _ = saved.restore(step.target())
    saved.close()
    resumed = jax.device_get(step(state, place(step, 1)))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.exhaustive
@pytest.mark.optax
def test_a_step_counts_less_arithmetic_than_full_training_and_more_than_a_frozen_encoder():
    named = {"vocab_size": 64, "length": 24, "heads": {"embedding": 32}, "kind": "text"}
    stub = {"name": "stub", **named, "width": 64, "depth": 4}
    counts = [
        make(small(text={**stub, **options})).model_flops()
        for options in (
            {"frozen": "encoder"},
            {"lora": {"rank": 2, "match": "layer_3/kernel"}},
            {"lora": {"rank": 2, "match": "first/kernel"}},
            {},
        )
    ]
    frozen, last, first, full = counts
    assert frozen < last < first < full


# Everything that encodes sees the updates.


def test_encodings_are_those_of_merged_weights_also_of_averaged_ones():
    config = small(text={"lora": EVERY}, average__evaluate=True)
    placed, params, variables = layout_and_params(config)
    plain = learner.layout(small(), toys.one_device())
    whole = {key: part for key, part in placed.effective(params).items() if key != "lora"}
    zero = {**params, "lora": jax.tree.map(jnp.zeros_like, params["lora"])}

    class Items:
        sha256 = ""

        def __len__(self):
            return 16

        def arrays(self, names, rows, tower=""):
            made = batch_of(config)
            return {name: made[name][list(rows)] for name in ("text.tokens", "text.mask")}

    def encoded(layout, state):
        state = {"step": jnp.int32(0), "variables": variables, **state}
        found = Predict(layout, toys.one_device(), batch_size=16).encode(
            state, Items(), ["text.embedding"]
        )
        return found["text.embedding"]

    expected = encoded(plain, {"params": whole})
    np.testing.assert_allclose(encoded(placed, {"params": params}), expected, atol=1e-5)
    averaged = encoded(placed, {"params": zero, "average": params})
    np.testing.assert_allclose(averaged, expected, atol=1e-5)
    assert np.abs(encoded(placed, {"params": zero}) - expected).max() > 0.01


STAGES = """
from configs import pretrain
from tests import stubs

def get_config(variant=""):
    config = pretrain.get_config("paper,smoke")
    config.total_steps, config.eval_every, config.checkpoint.every = 2, 0, 2
    config.optimizer.warmup_steps, config.batch_size, config.evaluators = 1, 8, {}
    stubs.use(config)
    config.objectives = {"global_contrastive": {"weight": 1.0}}
    return config
"""


@pytest.mark.exhaustive
@pytest.mark.optax
def test_an_export_and_a_later_run_hold_merged_weights(tmp_path, capsys):
    (tmp_path / "stages.py").write_text(STAGES)

    def train(name, *extra):
        arguments = (f"--config={tmp_path / 'stages.py'}", f"--workdir={tmp_path / name}")
        return commands.run_here("mmrl.main", *arguments, "--nosummary", *extra)

    options = ("--config.towers.text.lora.rank=2", "--config.towers.text.lora.match=.*kernel")
    assert train("first", *options, "--config.optimizer.learning_rate=0.1") == 0
    assert "low-rank" in capsys.readouterr().out
    export = (f"--workdir={tmp_path / 'first'}", f"--out={tmp_path / 'weights'}", "--weights")
    assert commands.run_here("mmrl.export", *export) == 0
    described = json.loads((tmp_path / "weights" / encoder_folder.ENCODER).read_text())
    assert "lora" not in described["towers"]["text"]

    saved = checkpoint.Checkpoints(tmp_path / "first", read_only=True)
    params = saved.read_arrays(("params",))["params"]
    saved.close()
    path = "first/kernel"
    own, updates = (by_path(one["towers"]["text"]["encoder"]) for one in (params, params["lora"]))
    # rank 2 and the default alpha of 16
    merged = own[path] + 8 * updates[f"{path}/a"] @ updates[f"{path}/b"]
    assert np.abs(merged - own[path]).max() > 1e-3
    with np.load(tmp_path / "weights" / encoder_folder.WEIGHTS) as stored:
        assert not any(name.startswith("lora/") for name in stored.files)
        np.testing.assert_allclose(stored[f"{ENCODER}{path}"], merged, atol=1e-6)
    sums = set()
    for name in ("first", "weights"):
        start = f"--config.towers.text.init={tmp_path / name}"
        assert train(f"from_{name}", start, "--config.towers.text.frozen=true") == 0
        saved = checkpoint.Checkpoints(tmp_path / f"from_{name}", read_only=True)
        sums.add(checkpoint.digest(saved.read_arrays(("params",))))
        saved.close()
    assert len(sums) == 1


# Refusals, and what is printed.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {"match": "stack/.*"}}, "matches no kernel of the encoder; it has: first/kernel"),
        ({"lora": {"rank": 0}}, "has rank 0, alpha 16.0; expected a rank of at least 1"),
        ({"lora": {"alpha": 0.0}}, "alpha above 0"),
        ({"lora": {"rank": "many"}}, "lora.rank='many'; expected a whole number"),
        ({"lora": {"targets": "q"}}, "unknown key in config.towers.text.lora 'targets'"),
        ({"lora": {"match": "("}}, "config.towers.text.lora.match='('"),
        ({"lora": {"rank": 2}, "frozen": True}, "frozen=True and lora, which trains"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    config = small(text=options)
    with pytest.raises(InputError) as refused:
        configs.validate(config)
        learner.layout(config, toys.one_device())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_encoder_with_batch_statistics_is_refused():
    config = toys.without_copies(toys.config())
    config.towers.image = {
        "name": "resnet", "depth": 18, "width": 8, "size": 32, "norm": "batch",
        "heads": {"embedding": 32, "regions": 32}, "lora": {"match": ".*kernel"},
    }  # fmt: skip
    with pytest.raises(InputError, match="batch statistics, which training would change"):
        learner.layout(config, toys.one_device())


def test_counts_of_trained_frozen_and_low_rank_parameters():
    config = small(text={"lora": LORA}, image={"frozen": "encoder"})
    params = learner.layout(config, toys.one_device()).params
    found = optim.counts(params, optim.trainable(params, optim.rules(config)))

    def size(start):
        return sum(
            leaf.size for path, leaf in initial.by_path(params).items() if path.startswith(start)
        )

    for name in ("image", "text"):
        whole, encoder = size(f"towers/{name}/"), size(f"towers/{name}/encoder/")
        low = size(f"lora/towers/{name}/")
        more = f", and {low:,} low-rank" if low else ""
        assert found[name] == (f"{whole:,} ({whole - encoder:,} trained, {encoder:,} frozen{more})")
    pieces = config.towers.text.vocab_size
    assert size("lora/") == 3 * (pieces + 32) + 3 * (32 + 32)
    assert found["objectives"] == f"{size('objectives/'):,}"
    plain = learner.layout(small(), toys.one_device()).params
    assert optim.counts(plain, jax.tree.map(lambda _: True, plain))["text"] == f"{whole:,}"
