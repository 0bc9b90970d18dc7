"""The losses of a run on its validation split, against dense computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl import wiring
from mmrl.data.inputs import base as inputs
from mmrl.devices import sharding
from mmrl.training import encoding
from mmrl.training.predict import Predict
from mmrl.training.step import TrainStep
from mmrl.training.validation import Validation
from tests import stubs, toys

COUNT, BATCH = 21, 8  # two full batches, and one with five rows


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered():
        yield


def small(**changes):
    config = toys.config(objectives={"global_contrastive": {"weight": 2.0}})
    return toys.changed(stubs.use(config, dropout=0.5), **changes)


def built(config, mesh=None, size=BATCH, count=COUNT):
    """A validation, and a state with random parameters."""
    mesh = mesh or toys.one_device()
    step = TrainStep(config, mesh, toys.batches(config)[0])
    made = inputs.make(config, wiring.wire(config)[0])
    validation = Validation(
        step.layout, mesh, made, toys.corpus(count), toys.tokenizers(config), batch_size=size
    )
    return validation, stubs.start(step), step


def cross_entropy(logits, groups):
    """CLIP's loss in float64: the mean over rows and columns without pairs of equal group."""
    same = (groups[:, None] == groups[None, :]) & ~np.eye(len(groups), dtype=bool)
    logits = np.where(same, -np.inf, logits)
    total = 0.0
    for table in (logits, logits.T):
        total += (np.logaddexp.reduce(table, axis=1) - np.diag(table)).sum()
    return total / 2 / len(groups)


def test_it_is_the_mean_over_rows_of_the_loss_of_every_batch():
    config = small()
    validation, state, step = built(config)
    data = _Examples(config, COUNT)
    encoded = Predict(step.layout, step.mesh).encode(state, data, NAMES)
    image, text = (np.asarray(encoded[name], np.float64) for name in NAMES)
    log = state["params"]["objectives"]["global_contrastive"]["logit_scale"]["log"]
    order, groups, total = validation._order, np.asarray(toys.corpus(COUNT).groups), 0.0
    assert sorted(order) == list(range(COUNT))
    for start in range(0, COUNT, BATCH):
        rows = order[start : start + BATCH]
        logits = np.exp(float(log)) * image[rows] @ text[rows].T
        total += len(rows) * cross_entropy(logits, groups[rows])
    found = validation(state)
    np.testing.assert_allclose(found["val/global_contrastive/loss"], total / COUNT, rtol=1e-5)
    np.testing.assert_allclose(found["val/loss"], 2 * total / COUNT, rtol=1e-5)


NAMES = ["image.embedding", "text.embedding"]


class _Examples:
    """Arrays of the toy corpus, as `Predict` takes them."""

    sha256 = "toy"

    def __init__(self, config, count):
        self._made = inputs.make(config, wiring.wire(config)[0])
        place = inputs.Place(toys.corpus(count), toys.tokenizer())
        self._readers = {name: one.open(place) for name, one in self._made.items()}
        self._count = count

    def __len__(self):
        return self._count

    def arrays(self, names, rows, tower=""):
        given = inputs.Rows(list(rows), 0, np.zeros(len(rows), np.uint64))
        return {
            f"{name}.{key}": value
            for name in names
            for key, value in self._readers[name](given, {}).items()
            if key in self._made[name].shapes()
        }


def test_rows_that_fill_up_a_batch_count_for_nothing():
    """As the batch without them, for all objectives that the toys have."""
    rows = 5
    objectives = {
        "global_contrastive": {"weight": 1.0},
        "siglip": {"weight": 0.5},
        "local_contrastive": {"weight": 0.5},
        "perturbed_discrimination": {"weight": 0.5},
    }
    config = stubs.use(toys.config(objectives=objectives))
    step = TrainStep(config, toys.one_device(), toys.batches(config)[0])
    state = stubs.start(step)

    @jax.jit
    def metrics(batch):
        module = nnx.merge(step.layout.graphdef, state["params"], state["variables"])
        return module(batch, step=jnp.int32(0), train=False)[1]

    batch = toys.batches(config)[0]
    alone = {name: array[:rows] for name, array in batch.items()}
    filled = batch | {encoding.ROWS: np.arange(BATCH) < rows}
    expected, found = metrics(alone), metrics(filled)
    for name, pair in expected.items():
        np.testing.assert_allclose(found[name], pair, rtol=1e-4, atol=1e-5, err_msg=name)


def test_nothing_is_random_and_the_state_stays_as_it_is():
    validation, state, _ = built(small())
    before = jax.tree.map(np.asarray, state)
    first = validation(state)
    assert validation(state) == first
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))
    other, same, _ = built(small(seed=1))
    assert other(same) == first  # batches do not depend on the seed of the run


def test_averaged_weights_count_where_evaluation_uses_them():
    validation, state, _ = built(small(average__evaluate=True))
    state = {name: part for name, part in state.items() if name != "average"}
    halved = jax.tree.map(lambda leaf: leaf / 2, state["params"])
    expected = validation({**state, "params": halved})
    assert validation({**state, "average": halved}) == expected != validation(state)


def test_several_devices_compute_the_losses_of_one():
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:4])
    one, two = (built(small(), given)[:2] for given in (None, mesh))
    expected, found = (validation(state) for validation, state in (one, two))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_a_loss_that_is_not_finite_is_an_error():
    validation, state, _ = built(small())
    broken = jax.tree.map(lambda leaf: leaf * np.nan, state["params"])
    with pytest.raises(FloatingPointError, match="loss on the validation split is nan"):
        validation({**state, "params": broken})
