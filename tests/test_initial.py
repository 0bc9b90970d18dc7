"""Initial values from another run or from exported weights: config.init."""

import json

import jax
import numpy as np
import pytest

from mmrl import streams
from mmrl.training import checkpoint, initial, learner
from mmrl.types import InputError
from tests import commands, stubs, toys


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered():
        yield


def fresh(config):
    """Layout and state of a learner that was not trained."""
    layout = learner.layout(config, toys.one_device())
    params, variables = learner.split(learner.make(config, streams.key(config.seed, "init")))[1:]
    return layout, {"params": params, "variables": variables, "average": params}


def small(entries=(), seed=0, **of_image):
    config = stubs.use(toys.config())
    with config.unlocked():
        config.seed = seed
        config.init = tuple(entries)
        config.towers.image.update(of_image)
    return config


@pytest.fixture
def source(tmp_path):
    """A folder of exported weights, and these weights by path."""
    _, state = fresh(small(seed=7))
    arrays = {path: np.asarray(leaf) for path, leaf in initial.by_path(state["params"]).items()}
    np.savez(tmp_path / initial.WEIGHTS, **arrays)
    return str(tmp_path), arrays


def started(config):
    """State after config.init, and what was read."""
    layout, state = fresh(config)
    read = initial.read(config, layout)
    before = {path: np.asarray(leaf) for path, leaf in initial.by_path(state["params"]).items()}
    return before, initial.apply(jax.tree.map(jax.numpy.asarray, state), read), read


@pytest.mark.parametrize("short", [True, False])
def test_matching_arrays_are_copied_and_no_other(source, short):
    folder, there = source
    entry = {"from": folder, "match": "towers/image/.*"}
    config = small(() if short else (entry,), **({"init": folder} if short else {}))
    before, state, (read,) = started(config)
    assert read.arrays
    for part in ("params", "average"):
        for path, leaf in initial.by_path(state[part]).items():
            expected = there if path.startswith("towers/image/") else before
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    assert set(read.unused) == {path for path in there if not path.startswith("towers/image/")}


def test_the_short_form_takes_the_encoder_and_the_heads_that_are_here(source):
    config = small(init=source[0])
    with config.unlocked():
        config.towers.image.heads = {"embedding": 32, "labels": 3}
        config.objectives = {"global_contrastive": {"weight": 1.0}}
    _, _, (read,) = started(config)
    taken = {"/".join(path.split("/")[2:4]) for path in read.arrays if "/heads/" in path}
    assert taken == {"heads/embedding"}
    assert any("/encoder/" in path for path in read.arrays)
    assert any(path.startswith("towers/image/heads/regions/") for path in read.unused)


def test_the_first_entry_that_fills_a_path_counts_and_to_renames(source):
    folder, there = source
    kernels = [path for path in there if path.endswith("heads/embedding/out/kernel")]
    image, text = (next(p for p in kernels if f"/{name}/" in p) for name in ("image", "text"))
    assert there[image].shape == there[text].shape
    to_image = {"from": folder, "match": "towers/text/(heads/embedding/.*)"}
    to_image["to"] = r"towers/image/\1"
    _, state, _ = started(small((to_image, {"from": folder, "match": "towers/image/.*"})))
    np.testing.assert_array_equal(initial.by_path(state["params"])[image], there[text])


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"match": "towers/picture/.*"}, "'towers/picture/.*' matches no path"),
        ({"match": "towers/image/.*", "to": r"towers/image/\2"}, "does not fit match="),
        (
            {"match": "towers/(image)/.*", "to": r"towers/\1/x"},
            "towers/image/x does not exist here",
        ),
        ({"match": "("}, "config.init[0].match='('"),
        ({"match": ""}, "expected from and match"),
        (
            {"match": ".*", "step": "last"},
            "config.init[0].step=last; expected the number",
        ),
        (
            {"match": ".*", "step": "best"},
            "exported weights, which have no step; given: best",
        ),
        ({"match": ".*", "into": "x"}, "unknown key in config.init[0] 'into'"),
        ({"match": ".*", "from": "no/such"}, "neither a run (checkpoints/) nor exported weights"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(source, entry, message):
    config = small(({"from": source[0], **entry},))
    with pytest.raises(InputError) as refused:
        started(config)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_arrays_of_another_shape_are_listed(source, tmp_path):
    folder, there = source
    names = [path for path in there if path.startswith("towers/image/")][:2]
    changed = there | {name: np.zeros((3, *there[name].shape), np.float32) for name in names}
    np.savez(tmp_path / initial.WEIGHTS, **changed)
    with pytest.raises(InputError, match="2 arrays do not fit") as refused:
        started(small(({"from": folder, "match": "towers/.*"},)))
    for name in names:
        assert f"{name} is [3, " in str(refused.value)


def test_weights_that_hold_objects_are_not_unpickled(source, tmp_path):
    np.savez(tmp_path / initial.WEIGHTS, x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="pickle"):
        started(small(({"from": source[0], "match": ".*"},)))


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
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_starts_from_another_run_and_from_its_export_alike(dtype, tmp_path, capsys):
    (tmp_path / "stages.py").write_text(STAGES)

    def train(name, *extra):
        arguments = (f"--config={tmp_path / 'stages.py'}", f"--workdir={tmp_path / name}")
        dtypes = f"--config.param_dtype={dtype}"
        return commands.run_here("mmrl.main", *arguments, "--nosummary", dtypes, *extra)

    assert train("first") == 0
    export = (f"--workdir={tmp_path / 'first'}", f"--out={tmp_path / 'weights'}", "--weights")
    assert commands.run_here("mmrl.export", *export) == 0
    sums = set()
    for name, folder in (("run", "first"), ("again", "first"), ("export", "weights")):
        start = f"--config.towers.image.init={tmp_path / folder}"
        assert train(name, "--config.seed=1", start) == 0
        saved = checkpoint.Checkpoints(tmp_path / name, read_only=True)
        sums.add(checkpoint.digest(saved.read_arrays(("params", "variables"))))
        saved.close()
        listed = json.loads((tmp_path / name / "init.json").read_text())
        assert all(path.startswith("towers/image/") for path in listed["read"][0]["copied"])
        assert not any(path.startswith("towers/image/") for path in listed["random"])
    assert len(sums) == 1
    assert "initial values:" in capsys.readouterr().out
