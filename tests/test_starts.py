"""Towers that start from the folder of an encoder: options, initial values, refusals."""

import json
import shutil

import jax
import numpy as np
import pytest

from mmrl import config as configs
from mmrl import encoder_folder, presets, starts, streams
from mmrl.models import positions
from mmrl.training import checkpoint, initial, learner
from mmrl.types import InputError
from tests import commands, stubs, toys
from tests.test_lora import STAGES

IMAGE = {
    "name": "vit", "size": 32, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2,
    "pixel_mean": 0.4, "heads": {"embedding": {"width": 32, "kind": "mlp"}, "regions": 32},
}  # fmt: skip
TEXT = {
    "name": "transformer", "length": 24, "vocab_size": 300, "width": 16, "depth": 1,
    "num_heads": 2, "pool": "cls", "head": "mlp", "heads": {"embedding": 32, "words": 32},
    "tokenizer": "tokenizer.model",
}  # fmt: skip


def describe(folder, towers, **content):
    content = {"format": 1, "towers": towers, "data": {"resize": "stretch"}, **content}
    (folder / encoder_folder.ENCODER).write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """A folder as a conversion writes it; its tensors are random."""
    path = tmp_path / "weights"
    path.mkdir()
    toys.tokenizer().save(path / "tokenizer.model")
    describe(path, {"image": IMAGE, "text": {**TEXT, "vocab_size": toys.tokenizer().vocab_size}})
    config = toys.config(objectives={"global_contrastive": {}})
    pieces = toys.tokenizer().vocab_size
    config.towers = {"image": IMAGE, "text": {**TEXT, "vocab_size": pieces, "tokenizer": ""}}
    config.objectives = {"global_contrastive": {}, "local_contrastive": {}}
    _, params, _ = learner.split(learner.make(config, streams.key(7, "init")))
    arrays = {name: np.asarray(leaf) for name, leaf in initial.by_path(params).items()}
    np.savez(path / encoder_folder.WEIGHTS, **arrays)
    return path


def changed(config, **given):
    """Notes of changes of the towers, and the towers."""
    notes = presets.change(config, [(f"towers.{key}", str(text)) for key, text in given.items()])
    return notes, config.towers.to_dict()


# Options.


def test_a_name_on_the_command_line_becomes_the_options_of_the_folder(folder):
    config = configs.base()
    config.towers.text.update({"frozen": "encoder", "init": "runs/earlier", "dropout": 0.3})
    notes, towers = changed(config, **{"text.name": folder, "text.pool": "mean"})
    assert towers["text"] == {
        "name": "transformer", "width": 16, "depth": 1, "num_heads": 2, "pool": "mean",
        "length": 24, "vocab_size": toys.tokenizer().vocab_size,
        "tokenizer": str(folder / "tokenizer.model"), "init": str(folder),
        "frozen": "encoder", "heads": {"embedding": 128, "words": 128},
    }  # fmt: skip
    assert notes == [
        f"config.towers.text: transformer of {folder}, but heads={{'embedding': 128, 'words': "
        "128}} (there {'embedding': 32, 'words': 32})".replace("}}", "}")
    ]
    assert towers["image"] == configs.base().towers.image.to_dict()
    configs.validate(config)


@pytest.mark.parametrize(("own", "found"), [(16, 16), (24, 24), (96, 24)])
def test_the_length_here_stays_if_it_is_shorter(folder, own, found):
    config = configs.base()
    config.towers.text.length = own
    assert changed(config, **{"text.name": folder})[1]["text"]["length"] == found


def test_options_given_on_the_command_line_count_in_any_order(folder):
    config = configs.base()
    given = {"image.size": 64, "image.init": "", "image.heads.embedding": 8, "image.name": folder}
    (note,), towers = changed(config, **given)
    heads = {"embedding": 8, "regions": 128}
    assert towers["image"] == {**IMAGE, "size": 64, "init": "", "heads": heads}
    assert note.endswith("; its images had data.resize=stretch, here they have pad")


def test_a_mapping_and_a_new_tower_take_everything_from_the_folder(folder):
    config = configs.base()
    cnn = {"name": str(folder), "kind": "image"}
    changed(config, text={"name": str(folder), "depth": 3}, cnn=cnn)
    towers = config.towers.to_dict()
    assert towers["text"]["depth"] == 3 and towers["text"]["heads"] == TEXT["heads"]
    assert towers["cnn"] == {**IMAGE, "kind": "image", "init": str(folder)}
    with pytest.raises(InputError, match=r"state config.towers.scan.kind .*: image, text"):
        changed(config, **{"scan.name": folder})


PRESET = """
from mmrl import config as defaults

def get_config():
    config = defaults.base()
    config.towers.text = {{"name": "{folder}", "pool": "mean", "heads": {{"embedding": 128}}}}
    config.towers.image = {{"name": "{folder}"}}
    config.objectives = {{"global_contrastive": {{}}}}
    return config
"""


def test_in_a_preset_the_keys_beside_the_name_count(folder, tmp_path):
    (tmp_path / "preset.py").write_text(PRESET.format(folder=folder))
    notes = []
    config = presets.load(str(tmp_path / "preset.py"), notes.append)
    assert config.towers.image.to_dict() == {**IMAGE, "init": str(folder)}
    text = config.towers.text.to_dict()
    assert (text["pool"], text["width"], text["heads"]) == ("mean", 16, {"embedding": 128})
    assert "head" not in text  # it was the kind of the heads there
    assert len(notes) == 2 and "pool=mean (there cls)" in notes[1]
    configs.validate(config)


def test_a_run_and_the_tower_of_another_name_are_found(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(folder / "tokenizer.model", run)
    used = {"init": "runs/x", "frozen": True, "lora": {"rank": 2}, "input": "text"}
    towers = {"reports": {**TEXT, "tokenizer": "", **used}, "image": IMAGE}
    (run / "config.json").write_text(json.dumps({"towers": towers, "data": {"resize": "pad"}}))
    _, found = changed(configs.base(), **{"text.name": run})
    assert found["text"] == {
        **{key: one for key, one in TEXT.items() if key != "head"},
        "tokenizer": str(run / "tokenizer.model"),
        "heads": {"embedding": 128, "words": 128},
        "init": str(run),
    }


def test_names_of_encoders_are_no_folders_even_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vit", "minilm"):
        (tmp_path / name).mkdir()
    found = [starts.is_folder(name) for name in ("vit", "minilm", "a/b", "other", "", None)]
    assert found == [False, True, True, False, False, False]


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"towers": {"image": IMAGE}}, "the folder has no text tower; it has: image (image)"),
        (
            {"towers": {"a": TEXT, "b": TEXT}},
            "several text towers, none of them called 'text'; it has: a (text), b (text)",
        ),
        ({"format": 2}, "has format 2; this version"),
        ({"towers": ["image"]}, "; expected a mapping"),
        ({"towers": {"text": {"width": 8}}}, "tower 'text' of"),
        ({"towers": {"text": {"name": "bert"}}}, "unknown encoder 'bert'"),
        (
            {"towers": {"text": {**TEXT, "tokenizer": "../weights/tokenizer.model"}}},
            "is no file of that folder",
        ),
        (
            {"towers": {"text": {**TEXT, "tokenizer": "absent.json"}}},
            "is no file of that folder",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused_in_one_line(folder, content, message):
    describe(folder, **{"towers": {"image": IMAGE}, **content})
    _refused(folder, message)


def _refused(folder, message):
    with pytest.raises(InputError) as refused:
        changed(configs.base(), **{"text.name": folder})
    assert f"={folder}" in str(refused.value) and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_folder_of_an_encoder_is_refused_in_one_line(folder, tmp_path):
    _refused("no/such/folder", "there is no such folder")
    _refused(tmp_path, "holds no encoder")
    (folder / encoder_folder.ENCODER).write_text("{")
    _refused(folder, "is not JSON")


# Initial values.


def started(config):
    """Arrays by path after reading, and what was read."""
    placed = learner.layout(config, toys.one_device())
    _, params, variables = learner.split(learner.make(config, streams.key(0, "init")))
    read = initial.read(config, placed)
    state = {"params": params, "variables": variables}
    found = initial.apply(jax.tree.map(jax.numpy.asarray, state), read)
    return {path: np.asarray(leaf) for path, leaf in initial.by_path(found["params"]).items()}, read


def starting(folder, image=None, text=None):
    """A config whose two towers start from a folder, with other options."""
    config = toys.config(objectives={"global_contrastive": {}})
    for name, more in (("image", image), ("text", text)):
        config.towers[name] = {"name": str(folder), **(more or {})}
    presets.expand(config)
    return config


def test_the_whole_encoder_and_equal_heads_are_taken(folder):
    heads = {"embedding": 32, "words": {"width": 32, "kind": "mlp"}}
    found, (read,) = started(starting(folder, text={"heads": heads}))
    with np.load(folder / encoder_folder.WEIGHTS) as there:
        for path, value in found.items():
            fresh = path.startswith("towers/text/heads/embedding/")
            if path.startswith("towers/") and not fresh:
                np.testing.assert_array_equal(value, there[path], err_msg=path)
    (note,) = read.notes
    assert note == (
        "towers.text starts with random values in: embedding ({'kind': 'mlp', 'width': 32} there)"
    )


def test_a_tower_of_another_name_takes_that_of_its_kind(folder):
    config = starting(folder)
    with config.unlocked():
        config.towers.scan = config.towers.image
        del config.towers.image
        reads = {"image": "scan.embedding"}
        config.objectives = {"global_contrastive": {"reads": reads}}
        config.evaluators = {}
    found, (read,) = started(config)
    assert read.notes == ()
    with np.load(folder / encoder_folder.WEIGHTS) as there:
        for path, value in found.items():
            if path.startswith("towers/scan/"):
                expected = there[path.replace("/scan/", "/image/")]
                np.testing.assert_array_equal(value, expected, err_msg=path)


def test_positions_and_patches_are_fitted_to_other_sizes_and_it_is_said(folder):
    config = starting(folder, image={"size": 48, "patch_size": 12}, text={"length": 10})
    found, (read,) = started(config)
    wider, (grown,) = started(starting(folder, image={"size": 64}))
    with np.load(folder / encoder_folder.WEIGHTS) as stored:
        there = dict(stored)
    patch, position = (f"towers/image/encoder/{name}" for name in ("patch/kernel", "position"))
    words = "towers/text/encoder/position"
    np.testing.assert_array_equal(found[words], there[words][:10])
    expected = positions.resize_patch(there[patch], 8, 12, 1)
    np.testing.assert_allclose(found[patch], expected, atol=1e-6)
    np.testing.assert_array_equal(found[position], there[position])
    expected = positions.resize_grid(there[position], (4, 4), (8, 8))
    np.testing.assert_allclose(wider[position], expected, atol=1e-6)
    assert read.notes == (
        f"{patch}: patches are resampled from 8 to 12 pixels",
        f"{words}: 10 of 24 positions are kept",
    )
    assert grown.notes == (f"{position}: positions are interpolated from 4 x 4 to 8 x 8 patches",)
    described = json.loads((folder / encoder_folder.ENCODER).read_text())
    described["data"]["antialias"] = False
    (folder / encoder_folder.ENCODER).write_text(json.dumps(described))
    wider, _ = started(starting(folder, image={"size": 64}))
    expected = positions.resize_grid(there[position], (4, 4), (8, 8), antialias=False)
    np.testing.assert_allclose(wider[position], expected, atol=1e-6)
    # The digest is that of the arrays as they were read.
    _, (plain,) = started(starting(folder))
    assert read.sha256 == grown.sha256 == plain.sha256


def test_rows_of_the_token_table_beyond_the_ids_of_its_tokenizer_are_left_out(folder):
    config = starting(folder)
    with np.load(folder / encoder_folder.WEIGHTS) as stored:
        there = dict(stored)
    table = "towers/text/encoder/token/embedding"
    there[table] = np.concatenate([there[table], np.ones((3, 16), np.float32)])
    np.savez(folder / encoder_folder.WEIGHTS, **there)
    found, (read,) = started(config)
    np.testing.assert_array_equal(found[table], there[table][:-3])
    rows = len(found[table])
    assert read.notes == (f"{table}: {rows} of {rows + 3} rows are kept, one for each id",)
    with config.unlocked():
        config.towers.text.tokenizer = "another.json"
    with pytest.raises(InputError, match="token/embedding is"):
        started(config)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "options", [{"text": {"length": 48}}, {"image": {"width": 32}}, {"image": {"channels": 3}}]
)
def test_every_other_difference_stays_an_error(folder, options):
    with pytest.raises(InputError, match="arrays do not fit"):
        started(starting(folder, **options))


@pytest.mark.exhaustive
@pytest.mark.optax
def test_a_run_continues_without_the_folder_that_it_started_from(tmp_path, capsys):
    """The weights are not read again, and the run remembers the options; the digest stays."""
    (tmp_path / "stages.py").write_text(STAGES)

    def train(name, *extra):
        arguments = (f"--config={tmp_path / 'stages.py'}", f"--workdir={tmp_path / name}")
        return commands.run_here("mmrl.main", *arguments, "--nosummary", *extra)

    def state(name):
        saved = checkpoint.Checkpoints(tmp_path / name, read_only=True)
        found = checkpoint.digest(saved.read_arrays(("params",))), saved.meta()["init"]
        saved.close()
        return found

    with stubs.registered():
        assert train("first") == 0
        weights = tmp_path / "weights"
        export = (f"--workdir={tmp_path / 'first'}", f"--out={weights}", "--weights")
        assert commands.run_here("mmrl.export", *export) == 0
        start = (f"--config.towers.text.name={weights}", "--config.towers.text.lora.rank=2")
        start += ("--config.towers.text.lora.match=.*kernel",)
        assert train("second", *start) == 0
        _, (read,) = state("second")
        assert read["from"] == str(weights) and len(read["sha256"]) == 64
        shutil.copytree(tmp_path / "second", tmp_path / "third")
        assert train("third", *start, "--config.total_steps=3") == 0
        shutil.rmtree(weights)
        capsys.readouterr()
        assert train("second", *start, "--config.total_steps=3") == 0
        assert "resumed from step 2" in capsys.readouterr().out
        assert state("second") == state("third") and state("second")[1] == [read]
        assert train("fourth", *start) == 2
        assert "there is no such folder" in capsys.readouterr().err
