"""Encoders that carry no run: their folder, evaluation, comparison and use."""

import functools
import json
import shutil

import cv2
import numpy as np
import pytest

import mmrl
from benchmarks import browser
from mmrl import config as configs
from mmrl import encoder_folder
from mmrl.evaluators.retrieval import Retrieval
from mmrl.evaluators.zero_shot_classes import ZeroShotClasses
from mmrl.training import run
from mmrl.types import InputError
from tests import commands, dicoms
from tests.browser import is_sound
from tests.conftest import ROOT
from tests.test_text_inference_preset import mednli  # noqa: F401

CACHE = f"--config.compile_cache={commands.COMPILATIONS.name}"

# Data and evaluators to judge by; the towers differ from those of every encoder here.
JUDGE = """
from configs import pretrain

def get_config():
    config = pretrain.get_config("paper,smoke")
    config.data.length, config.data.fractions = 120, (0.5, 0.2, 0.3)
    config.data.seed = 1  # the run read other patients
    config.towers.image.size, config.towers.text.length = 48, 40
    config.inputs = {
        name: {"name": "text", "sections": (name,)} for name in ("findings", "impression")
    }
    same = {"image": "text@findings.embedding", "text": "text@impression.embedding"}
    config.evaluators = {
        "retrieval": {"bootstrap": 50},
        "structure": {"max_reports": 20, "bootstrap": 20},
        "pointing": {"count": 10, "optional": True, "bootstrap": 20},
        "nearest": {
            "name": "precision_at_k",
            "classes": ("nodule", "pleural effusion"),
            "reads": {"candidates": "image.embedding"},
            "bootstrap": 20,
        },
        "parts": {"name": "retrieval", "bootstrap": 50, "reads": same},
    }
    return config
"""


@pytest.fixture
def refusal(capsys):
    return functools.partial(commands.refusal, capsys)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    file = tmp_path_factory.mktemp("judge") / "judge.py"
    file.write_text(JUDGE)
    return f"--config={file}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, with other preprocessing than the default."""
    workdir = tmp_path_factory.mktemp("run") / "ours"
    options = {
        "total_steps": 2,
        "optimizer.warmup_steps": 0,
        "eval_every": 0,
        "log_every": 1,
        "data.length": 60,
        "data.resize": "crop",
        "towers.image.pixel_mean": 0.4,
        "evaluators": "{'retrieval': {}}",
        "objectives": "{'global_contrastive': {}}",
    }
    changes = [f"--config.{key}={value}" for key, value in options.items()]
    command = commands.train_command(workdir, *changes, "--nosummary", variant="paper,smoke")
    assert commands.run_here(*command) == 0
    return workdir


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder of its encoders."""
    folder = tmp_path_factory.mktemp("encoder") / "both"
    arguments = ("mmrl.export", f"--workdir={trained}", f"--out={folder}", "--weights")
    assert commands.run_here(*arguments) == 0
    return folder


def part(exported, folder, kind):
    """The folder of one tower alone."""
    folder.mkdir()
    arrays = encoder_folder.read_weights(exported / "weights.npz")
    own = {path: array for path, array in arrays.items() if path.startswith(f"towers/{kind}/")}
    np.savez(folder / "weights.npz", **own)
    stated = json.loads((exported / "encoder.json").read_text())
    stated["towers"] = {kind: stated["towers"][kind]}
    (folder / "encoder.json").write_text(json.dumps(stated))
    if kind == "text":
        shutil.copy(exported / "tokenizer.model", folder)
    return folder


def evaluated(folder, out, *arguments):
    """What `python -m mmrl.evaluate --encoder` writes."""
    command = ("mmrl.evaluate", f"--encoder={folder}", f"--out={out}", CACHE, *arguments)
    assert commands.run_here(*command) == 0
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def judged(trained, exported, preset, tmp_path_factory):
    """Folder of evaluations: of the run, of its encoders, and of each of them alone."""
    folder = tmp_path_factory.mktemp("judged")
    arguments = (f"--workdir={trained}", preset, f"--out={folder / 'run'}", CACHE)
    assert commands.run_here("mmrl.evaluate", *arguments) == 0
    evaluated(exported, folder / "both", preset)
    for kind in ("image", "text"):
        alone = part(exported, folder / f"{kind}_encoder", kind)
        evaluated(alone, folder / kind, preset)
    return folder


def read(judged, name):
    return json.loads((judged / name / "results.json").read_text())


@pytest.mark.exhaustive
@pytest.mark.optax
def test_an_encoder_has_the_figures_of_the_run_that_it_is_from(judged):
    own, foreign = read(judged, "run"), read(judged, "both")
    assert own["step"] == 2 and foreign["step"] is None
    assert foreign["left_out"] == {} and foreign["results"] == own["results"]
    assert own["encoders"] == foreign["encoders"]
    assert foreign["encoders"]["image"] == {
        "name": "vit",
        "size": 32,
        "channels": 1,
        "pixel_mean": 0.4,
        "pixel_std": 0.25,
    }
    preprocessing = foreign["results"]["retrieval"]["preprocessing"]
    assert (preprocessing["size"], preprocessing["resize"]) == (32, "crop")
    assert preprocessing["text_length"] == 48


@pytest.mark.exhaustive
@pytest.mark.optax
def test_results_say_where_an_encoder_is_from_and_that_leaks_are_unknown(judged):
    foreign, page = read(judged, "both"), (judged / "both" / "report.html").read_text()
    assert (foreign["source"]["family"], foreign["source"]["step"]) == ("mmrl", 2)
    assert foreign["leaks"] == {"note": run.UNKNOWN_TRAINING}
    assert "leaks cannot be excluded" in page and "source.weights_sha256" in page
    assert "encoders.image.pixel_mean" in page and "Left out" not in page
    assert "source" not in read(judged, "run") and "trained_with" not in page


@pytest.mark.exhaustive
@pytest.mark.optax
def test_one_tower_alone_runs_what_needs_only_that_tower(judged):
    whole = read(judged, "both")
    for kind, kept in (("image", ["nearest"]), ("text", ["parts"])):
        alone, page = read(judged, kind), (judged / kind / "report.html").read_text()
        left = [name for name in whole["results"] if name not in kept]
        assert list(alone["results"]) == kept and list(alone["left_out"]) == left
        for name in kept:  # the preprocessing of the other tower is not stated
            assert alone["results"][name]["values"] == whole["results"][name]["values"]
        assert "<h2>Left out</h2>" in page
        other = {"image": "text.embedding", "text": "image.embedding"}[kind]
        assert alone["left_out"]["retrieval"].startswith(f"needs {other}; there are {kind}.pooled")
    assert "text_length" not in read(judged, "image")["results"]["nearest"]["preprocessing"]


@pytest.mark.exhaustive
@pytest.mark.optax
def test_the_console_names_what_is_left_out_and_warns(judged, preset, tmp_path, capsys):
    evaluated(judged / "text_encoder", tmp_path / "out", preset)
    out = capsys.readouterr().out
    assert "left out: retrieval needs image.embedding; there are text.pooled," in out
    assert f"warning: {run.UNKNOWN_TRAINING}" in out
    assert "tower text: name transformer, length 48" in out
    assert "evaluating the encoder of" in out


@pytest.mark.exhaustive
@pytest.mark.optax
def test_a_text_encoder_judges_sentence_pairs(judged, mednli, tmp_path):  # noqa: F811
    found = evaluated(
        judged / "text_encoder",
        tmp_path / "out",
        "--config=configs/text_inference.py:frozen",
        f"--config.data.path={mednli}",
        "--config.evaluators.text_inference.reads.text=text.pooled",
        "--config.evaluators.text_inference.bootstrap=20",
    )
    assert found["results"]["text_inference"]["n"] == 120 and not found["left_out"]


@pytest.mark.exhaustive
@pytest.mark.optax
def test_encoders_stand_in_one_table_with_blank_cells_and_blind_rows(judged, capsys):
    paths = [f"{name}={judged / name}" for name in ("run", "both", "image")]
    assert commands.run_here("mmrl.compare", *paths) == 0
    shown = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in shown.splitlines() if line.startswith("|")]
    lines = {}
    for name, *cells in rows:  # of the first table
        lines.setdefault(name.strip(), [cell.strip() for cell in cells])
    of = {measure.partition("/")[0]: place for place, measure in enumerate(lines[""])}
    assert lines["run"] == lines["both"] and all(lines["run"])
    for name, place in of.items():
        assert lines["image"][place] == (lines["run"][place] if name == "nearest" else "")
    assert "images permuted" in lines
    assert "image: without retrieval, which needs text.embedding" in shown
    assert "both: encoder of the family mmrl, weights " in shown and "cannot be excluded" in shown
    assert commands.run_here("mmrl.compare", *paths[1:], f"text={judged / 'text'}") == 0
    assert "| text |" in capsys.readouterr().out


@pytest.mark.exhaustive
@pytest.mark.optax
def test_encoders_of_other_libraries_stand_in_one_table_with_ours(judged, preset, tmp_path, capsys):
    """Models that the reference libraries initialised at random, see tests/reference_images.py."""
    paths = [f"ours={judged / 'run'}"]
    # Nine tokens of a text are too few for its copies.
    changes = {"clip_pair": ("--config.evaluators.structure=none",), "dinov2": ()}
    for name, without in changes.items():
        source, folder = ROOT / "tests/golden/convert" / name, tmp_path / f"{name}_encoder"
        assert commands.run_here("mmrl.convert", source, f"--out={folder}") == 0
        found = evaluated(folder, tmp_path / name, preset, *without)
        paths.append(f"{name}={tmp_path / name}")
        stated = found["encoders"]["image"]
        assert stated["channels"] == 3 and stated["pixel_mean"] == [0.48, 0.45, 0.41]
        assert found["results"]["nearest"]["preprocessing"]["resize"] == "crop"
    assert found["left_out"].keys() == {"parts", "pointing", "retrieval", "structure"}
    capsys.readouterr()
    assert commands.run_here("mmrl.compare", *paths, f"--out={tmp_path / 'table'}") == 0
    table = json.loads((tmp_path / "table" / "comparison.json").read_text())
    values = {row["name"]: row["values"] for row in table["rows"]}
    assert values["dinov2"].keys() == {"nearest/P@10"}
    assert "retrieval/image_to_text/R@1" in values["clip_pair"]
    assert "retrieval/image_to_text/R@1" in values["clip_pair, images permuted"]
    assert table["facts"]["encoders"]["dinov2"]["source"]["family"] == "dinov2"


@pytest.fixture(scope="module")
def compared(trained, exported, judged, preset, tmp_path_factory):
    """What `python -m mmrl.compare` writes of a run, its encoders and a stored evaluation."""
    folder = tmp_path_factory.mktemp("compared")
    given = [f"run={trained}", f"both={exported}", f"stored={judged / 'image'}"]
    assert commands.run_here("mmrl.compare", *given, preset, *QUICK, f"--out={folder}") == 0
    return folder


QUICK = (CACHE, "--config.evaluators.structure=none", "--config.evaluators.pointing=none")


@pytest.mark.exhaustive
@pytest.mark.optax
def test_runs_and_encoders_are_evaluated_where_they_are_not_yet(
    compared, trained, exported, judged, preset, capsys, refusal
):
    table = json.loads((compared / "comparison.json").read_text())
    rows = {row["name"]: row["values"] for row in table["rows"]}
    assert rows["run"] == rows["both"] and list(rows["stored"]) == ["nearest/P@10"]
    assert sorted(p.name for p in (compared / "evaluations").iterdir()) == ["both", "run"]
    for name in ("run", "both"):  # the same as of mmrl.evaluate with this preset
        own = json.loads((compared / "evaluations" / name / "results.json").read_text())
        whole = read(judged, name)["results"]
        assert own["results"] == {key: whole[key] for key in ("retrieval", "nearest", "parts")}
    again = ("mmrl.compare", f"run={trained}", f"both={exported}", *QUICK, f"--out={compared}")
    before = (compared / "evaluations" / "run" / "results.json").stat().st_mtime_ns
    capsys.readouterr()
    assert commands.run_here(*again, preset) == 0
    told = capsys.readouterr().out
    assert all(f"{name}: evaluated before, {compared}" in told for name in ("run", "both"))
    # Another split is another evaluation.
    assert commands.run_here(*again[:2], *again[3:], preset, "--split=val") == 0
    own = compared / "evaluations" / "run" / "results.json"
    assert json.loads(own.read_text())["results"]["retrieval"]["data"]["name"].endswith("/val")
    assert own.stat().st_mtime_ns > before
    for arguments, text in (
        ((f"run={trained}",), "missing --out"),
        ((f"run={exported.parent}", f"--out={compared}"), "holds no run, no encoder and no eval"),
        ((f"both={exported}", f"--out={compared}"), "need --config=FILE"),
        ((f"a/b={exported}", f"--out={compared}"), "'a/b' is no name of a folder"),
        ((f"run={trained}", f"--out={compared}", "--split=dev"), "--split=dev; choices"),
        ((f"run={trained}", f"--out={compared}", "--step=9"), "no checkpoint of step 9 in "),
    ):
        assert text in refusal("mmrl.compare", *arguments), arguments


@pytest.mark.exhaustive
@pytest.mark.optax
def test_an_evaluation_of_the_run_itself_is_reused(trained, tmp_path, capsys):
    """Without --config the first run judges, so that its own evaluation asks the same."""
    changed = "--config.evaluators.retrieval.bootstrap=20"
    assert commands.run_here("mmrl.evaluate", f"--workdir={trained}", changed) == 0
    capsys.readouterr()
    command = ("mmrl.compare", trained, changed, f"--out={tmp_path / 'out'}")
    assert commands.run_here(*command) == 0
    own = trained / "evaluations" / "test-00000002"
    assert f"ours: evaluated before, {own}" in capsys.readouterr().out
    assert not (tmp_path / "out" / "evaluations").exists()
    content = json.loads((own / "results.json").read_text())
    assert content["config"]["data"]["length"] == 60 and len(content["asked_sha256"]) == 64


@pytest.mark.exhaustive
@pytest.mark.optax
def test_pages_of_real_evaluations_are_sound_in_a_browser(compared):
    if reason := browser.missing():
        pytest.skip(reason)
    pages = [compared / "comparison.html", compared / "evaluations" / "both" / "report.html"]
    with browser.started() as running:
        for page in pages:
            with browser.opened(running, page) as visit:
                is_sound(visit)
    text = pages[1].read_text(encoding="utf-8")
    for told in ("Reports nearest to an image", "Images nearest to a report", "Map of image."):
        assert told in text, told


@pytest.mark.exhaustive
@pytest.mark.optax
def test_load_embeds_as_the_run_does(trained, exported, judged, tmp_path):
    own, foreign = mmrl.load(str(trained)), mmrl.load(str(exported))
    assert (own.step, foreign.step, foreign.dim) == (2, None, own.dim)
    images = [np.random.default_rng(0).integers(0, 256, (40, 90), np.uint8)]
    np.testing.assert_array_equal(foreign.embed_images(images), own.embed_images(images))
    (tmp_path / "IM000001").write_bytes(dicoms.image(images[0], 8))
    kinds = [tmp_path / "IM000001", str(tmp_path / "IM000001"), dicoms.image(images[0], 8)]
    kinds += [cv2.imencode(".tiff", images[0])[1].tobytes(), images[0][:, :, None]]
    np.testing.assert_array_equal(own.embed_images(kinds), own.embed_images(images * len(kinds)))
    for lone in (str(tmp_path / "IM000001"), tmp_path / "IM000001", kinds[2], images[0], None):
        with pytest.raises(InputError, match="items"):
            own.embed_images(lone)
    for wrong in ([images[0], None], [images[0], images[0].astype(float)], [images[0], b"\xff"]):
        with pytest.raises(InputError, match=r"(items\[1\]|image 1)"):
            own.embed_images(wrong)
    burned = [dicoms.image(images[0], 8, BurnedInAnnotation="YES")]
    with pytest.raises(InputError, match="image 0: burned_in_annotation"):
        own.embed_images(burned)
    embedded = own.embed_images(burned, allow_burned_in=True)
    np.testing.assert_array_equal(embedded, own.embed_images(images))
    texts = ["Small left effusion."]
    np.testing.assert_array_equal(foreign.embed_texts(texts), own.embed_texts(texts))
    for unfit in (texts[0], None, b"Effusion.", [b"Effusion."], [None], ["\ud800"], [5]):
        with pytest.raises(InputError, match="texts"):
            own.embed_texts(unfit)
    alone = mmrl.load(judged / "text_encoder")
    np.testing.assert_array_equal(alone.embed_texts(texts), own.embed_texts(texts))
    with pytest.raises(InputError, match=r"unknown tower in 'image\.embedding'"):
        alone.embed_images(images)
    with pytest.raises(InputError, match="without steps; given: step=1"):
        mmrl.load(exported, step=1)
    for wrong in (None, [str(exported)], b"runs"):
        with pytest.raises(InputError, match=r"path is .*; expected the path"):
            mmrl.load(wrong)
    for wrong in (exported.parent, exported / "none", ROOT / "tests/golden/convert/clip_pair"):
        with pytest.raises(InputError, match="holds neither a trained run nor encoders of mmrl"):
            mmrl.load(wrong)


@pytest.mark.exhaustive
@pytest.mark.optax
def test_an_encoder_embeds_the_records_of_a_preset(trained, exported, preset, tmp_path):
    given = (preset, "--split=val", "--format=npz", CACHE)
    for name, source in (("own", f"--workdir={trained}"), ("foreign", f"--encoder={exported}")):
        out = f"--out={tmp_path / name}"
        assert commands.run_here("mmrl.export", source, out, *given) == 0
    (file,) = (path.name for path in (tmp_path / "own").glob("*.npz"))
    with np.load(tmp_path / "own" / file) as own, np.load(tmp_path / "foreign" / file) as foreign:
        assert set(own.files) == set(foreign.files)
        for column in own.files:
            np.testing.assert_array_equal(own[column], foreign[column])
    manifest = json.loads((tmp_path / "foreign" / "manifest.json").read_text())
    assert manifest["checkpoint"]["step"] is None and manifest["source"]["family"] == "mmrl"


@pytest.mark.exhaustive
@pytest.mark.optax
def test_flags_that_do_not_go_together_are_refused(refusal, trained, exported, preset, tmp_path):
    encoder, out = f"--encoder={exported}", f"--out={tmp_path / 'out'}"
    for arguments, text in (
        ((), "expected --workdir=FOLDER or --encoder=FOLDER; given: neither"),
        ((encoder, f"--workdir={trained}"), "given: both"),
        ((encoder, out), "--encoder needs --config=FILE"),
        ((encoder, out, "--config.data.length=9"), "--encoder needs --config=FILE"),
        ((encoder, preset), "missing --out"),
        ((encoder, preset, out, "--step=2"), "--step=2: an encoder that was not trained here"),
        ((f"--encoder={trained}", preset, out), f"holds a run; expected --workdir={trained}"),
        ((f"--encoder={tmp_path}", preset, out), "holds no encoder (encoder.json: No such file"),
        ((encoder, preset, out, "--split=dev"), "--split=dev; choices"),
    ):
        assert text in refusal("mmrl.evaluate", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
@pytest.mark.optax
def test_an_encoder_that_can_run_nothing_is_refused(refusal, judged, preset, tmp_path):
    chosen = "--config.evaluators={'retrieval': {}, 'structure': {}}"
    image = f"--encoder={judged / 'image_encoder'}"
    error = refusal("mmrl.evaluate", image, preset, chosen, f"--out={tmp_path / 'out'}")
    assert "can run no evaluator of --config: " in error
    assert "retrieval needs text.embedding; there are image.pooled, image.embedding" in error
    assert "structure needs text.embedding" in error


def edited(**changes):
    """A change of encoder.json; values are functions of what stands there."""

    def change(folder):
        path = folder / "encoder.json"
        stated = json.loads(path.read_text())
        for key, value in changes.items():
            stated[key] = value(stated.get(key)) if callable(value) else value
        path.write_text(json.dumps(stated))

    return change


def weights(change):
    """A change of the arrays."""

    def apply(folder):
        arrays = encoder_folder.read_weights(folder / "weights.npz")
        np.savez(folder / "weights.npz", **change(arrays))

    return apply


def tower(which, **changes):
    return edited(towers=lambda towers: {**towers, which: {**towers[which], **changes}})


NORM = "towers/text/encoder/norm/scale"
WRONG = {
    "key": (edited(tower={}), "unknown key in .*'tower'.*did you mean 'towers'"),
    "data": (edited(data={"views": "each"}), "unknown key in data of .*'views'.*choices: resize"),
    "format": (edited(format=2), "has format 2; this version of mmrl reads 1"),
    "resize": (edited(data={"resize": "cut"}), "resize 'cut'; choices: pad, stretch, crop"),
    "no towers": (edited(towers={}), "has no towers"),
    "list": (edited(towers=[]), r"towers=\[\]; expected a mapping"),
    "tower": (edited(towers={"text": 3}), "towers.text=3; expected a mapping"),
    "option": (tower("text", widht=3), "encoder.json: unknown option in .*text.*'widht'"),
    "encoder": (tower("image", name="vitt"), "encoder.json: unknown encoder 'vitt'"),
    "code": (tower("image", name="os.path"), "towers.image.name='os.path' is a module of another"),
    "dtype": (edited(dtype="int8"), "encoder.json: unknown config.dtype 'int8'"),
    "tokenizer": (tower("text", tokenizer=""), "towers.text has no tokenizer"),
    "path": (
        tower("text", tokenizer="../run/tokenizer.model"),
        "'../run/tokenizer.model' is no file of that",
    ),
    "vocabulary": (tower("text", vocab_size=40), "vocab_size=40, but its tokenizer has"),
    "not JSON": (lambda f: (f / "encoder.json").write_text("{"), "encoder.json is not JSON"),
    "no weights": (
        lambda f: (f / "weights.npz").unlink(),
        "has no weights.npz",
    ),
    "pickle": (lambda f: (f / "weights.npz").write_bytes(b"\x80\x04N."), "cannot read .*npz: "),
    "objects": (
        weights(lambda arrays: {"x": np.array([{}], object)}),
        "cannot read .*npz: Object arrays cannot be loaded",
    ),
    "missing": (
        weights(lambda arrays: {k: v for k, v in arrays.items() if k != NORM}),
        f"1 arrays do not fit: {NORM} is missing",
    ),
    "extra": (
        weights(lambda arrays: {**arrays, f"{NORM}s": arrays[NORM]}),
        f"1 arrays do not fit: {NORM}s belongs to no tower",
    ),
    "shape": (
        weights(lambda arrays: {**arrays, NORM: arrays[NORM][:-1]}),
        rf"1 arrays do not fit: {NORM} is \[31\]; expected \[32\]",
    ),
    "not finite": (
        weights(lambda arrays: {**arrays, NORM: arrays[NORM] * np.nan}),
        f"{NORM} is not finite",
    ),
    "text": (
        weights(lambda arrays: {**arrays, NORM: arrays[NORM].astype(str)}),
        f"{NORM} is <U32; expected numbers",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.optax
@pytest.mark.parametrize("name", WRONG)
def test_wrong_folders_are_refused(name, exported, tmp_path):
    change, text = WRONG[name]
    folder = shutil.copytree(exported, tmp_path / "wrong")
    change(folder)
    with pytest.raises(InputError, match=text):
        run.read_encoder(folder)


@pytest.mark.exhaustive
def test_a_temperature_of_an_objective_is_not_read(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "more")
    more = {"objectives/other/logit_scale/log": np.float32(2)}
    weights(lambda arrays: {**arrays, **more})(folder)
    found, known = (run.read_encoder(one) for one in (folder, exported))
    assert found.weights_sha256() == known.weights_sha256()


def test_training_refuses_a_config_without_objectives():
    config = configs.base()
    config.objectives = {}
    configs.validate(config, train=False)
    with pytest.raises(InputError, match=r"config.objectives is empty"):
        configs.validate(config)


def test_what_an_evaluator_needs_depends_on_its_options():
    reads = dict(ZeroShotClasses.reads)
    assert ZeroShotClasses.needed(reads, {}) == ("image.embedding", "text.embedding")
    assert set(ZeroShotClasses.needed(reads, {"variants": ("biovil", "gloria")})) == {
        *reads.values()
    }
    assert Retrieval.needed({"image": "scan@second.embedding", "text": "text.embedding"}, {}) == (
        "scan@second.embedding",
        "text.embedding",
    )
    chosen = {"one": {"name": "retrieval", "reads": {"image": "scan@second.embedding"}}}
    assert not run.left_out(chosen, ["scan.embedding", "text.embedding"])
    assert run.left_out(chosen, ["scan.pooled"]) == {
        "one": "needs scan@second.embedding, text.embedding; there are scan.pooled"
    }
