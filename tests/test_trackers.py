"""Trackers: what they are told, and that training neither waits for them nor depends on them."""

import json
import math
import runpy
import sys
import textwrap
import threading
import time

import pytest

from mmrl import config as configs
from mmrl.reporting import write as reporting
from mmrl.training import checkpoint, run, train
from mmrl.training.trackers import sending
from mmrl.training.trackers.base import Outcome, Start, Tracker
from mmrl.types import InputError
from tests import stubs
from tests.conftest import ROOT

pytestmark = pytest.mark.optax

DIARY = '''
    """A tracker of another package."""

    import json
    from mmrl.training.trackers.base import Tracker

    class Diary(Tracker):
        """Writes what it is told to a file.

        Args:
          path: the file.
          fails: the methods that fail.
        """

        def __init__(self, *, path: str, fails: tuple[str, ...] = ()):
            self.path, self.fails = path, fails

        def write(self, what, *told):
            with open(self.path, "a") as file:
                file.write(json.dumps([what, *told]) + "\\n")
            if what in self.fails:
                raise OSError(f"no network for {what}")

        def check(self):
            self.write("check")

        def place(self):
            return {"path": self.path}

        def start(self, start):
            self.write("start", start.id, start.title, start.config["total_steps"])
            return start.id or "first"

        def scalars(self, step, kind, values):
            self.write("scalars", step, kind, values)

        def outcome(self, outcome):
            self.write("outcome", dict(outcome.values), sorted(outcome.pages))

        def close(self, status):
            self.write("close", status)
    '''


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Builds the trainer of a run of four steps: (workdir, trackers) -> Trainer."""
    get_config = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]
    package = tmp_path_factory.mktemp("package") / "hospital"
    package.mkdir()
    (package / "diary.py").write_text(textwrap.dedent(DIARY))
    cache = str(tmp_path_factory.mktemp("cache"))

    def build(workdir, trackers=None, steps=4):
        config = get_config("paper,smoke")
        config.data.length, config.batch_size, config.total_steps = 80, 8, steps
        config.log_every, config.eval_every, config.checkpoint.every = 1, 2, 2
        config.optimizer.warmup_steps, config.compile_cache = 1, cache
        config.tensorboard = False
        stubs.use(config)
        config.objectives = {"global_contrastive": {"weight": 1.0}}
        config.evaluators = {"retrieval": {"max_pairs": 16}}
        config.trackers = trackers or {}
        return train.Trainer(config, workdir)

    with stubs.registered(), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package.parent))
        yield build
    sys.modules.pop("hospital.diary", None)


@pytest.fixture(scope="module")
def untracked(trainer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("untracked") / "run"
    trainer(workdir).run()
    return content(workdir)


def diary(path, **options):
    return {"notes": {"name": "hospital.diary", "path": str(path), **options}}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(workdir):
    """All that the computation determines."""
    saved = checkpoint.Checkpoints(workdir, read_only=True)
    results = {path.name: path.read_text() for path in (workdir / "results").iterdir()}
    arrays = saved.read_arrays(["params", "opt_state", "step"])
    return (workdir / "metrics.jsonl").read_text(), results, checkpoint.digest(arrays)


@pytest.mark.exhaustive
def test_a_tracker_is_told_everything_and_changes_nothing(trainer, untracked, tmp_path):
    path, workdir = tmp_path / "diary", tmp_path / "run"
    made = trainer(workdir, diary(path))

    def finish(trained, results):
        return reporting.write(
            workdir,
            trained,
            made.examples(),
            made.evaluators,
            results,
            title="run",
            config=trained.meta["config"],
            leaks=made.leaks,
            numbers=True,
        )

    _, results = made.run(finish)
    assert content(workdir) == untracked
    told = read(path)
    assert told[:2] == [["check"], ["start", "", "run", 4]] and told[-1] == ["close", "finished"]
    assert told[-2] == ["outcome", run.scalars(results), ["numbers", "whole"]]
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    sent = [one[1:] for one in told if one[0] == "scalars" and one[2] != "timing"]
    assert sent == [[line.pop("step"), line.pop("kind"), line] for line in metrics]
    assert [one[1] for one in told if one[0] == "scalars" and one[2] == "timing"] == [1, 2, 3, 4]
    kept = json.loads((workdir / "trackers" / "runs.json").read_text())
    assert kept["notes"]["id"] == "first"

    whole, numbers = (
        (workdir / name).read_text() for name in ("report.html", "report_numbers.html")
    )
    ids, texts = made.corpora["val"].ids, made.corpora["val"].texts
    assert any(one in whole for one in ids) and "data:image" in whole
    assert not any(one in numbers for one in (*ids, *texts)) and "data:image" not in numbers
    assert "retrieval/" in numbers


@pytest.mark.exhaustive
def test_a_resumed_run_continues_the_run_of_its_tracker(trainer, tmp_path):
    path, workdir = tmp_path / "diary", tmp_path / "run"
    trainer(workdir, steps=2).run()
    trainer(workdir, diary(path), steps=3).run()  # the trackers of a run may change
    trainer(workdir, diary(path), steps=4).run()
    other = tmp_path / "other"
    trainer(workdir, diary(other), steps=5).run()
    assert [one[1:] for one in read(path) if one[0] == "start"] == [
        ["", "run", 3],
        ["first", "run", 4],
    ]
    steps = [one[1] for one in read(path) if one[0] == "scalars" and one[2] == "train"]
    assert steps == [3, 4]
    assert read(other)[1][:2] == ["start", ""]  # another place has no such run


@pytest.mark.exhaustive
def test_a_tracker_that_fails_does_not_stop_training(trainer, untracked, tmp_path, capsys):
    path, workdir = tmp_path / "diary", tmp_path / "run"
    trainer(workdir, diary(path, fails=("scalars", "close"))).run()
    assert content(workdir) == untracked
    lost = sum(one[0] == "scalars" for one in read(path)) + 1
    out = capsys.readouterr().out
    assert out.count("no network for scalars; training goes on without what is lost") == 1
    assert f"tracker notes: {lost} of its writes were lost: no network for scalars; " in out


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("fails", ["check", "start"])
def test_a_tracker_that_cannot_start_is_refused(trainer, tmp_path, fails):
    workdir, message = tmp_path / "run", f"config.trackers.notes: no network for {fails}"
    for _ in range(2):  # what a refused start leaves behind is no other experiment
        with pytest.raises(InputError, match=message):
            trainer(workdir, diary(tmp_path / "diary", fails=(fails,)))
    assert not (workdir / "config.json").exists() and not (workdir / "run.lock").exists()
    trainer(workdir, steps=3).release()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_before_data_are_read(trainer, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(run, "load_corpora", lambda *_: pytest.fail("data were read"))
    message = rf"config.trackers.{name}: the package {name}\S* cannot be imported .*: pip install "
    message += name
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "run", {name: {}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ({"wandb": {"projekt": "x"}}, "unknown option in config.trackers.wandb 'projekt'"),
        ({"wandb": {"mode": "both"}}, "expected one of online, offline"),
        ({"wandb": {"project": "a/b"}}, "config.trackers.wandb.project='a/b'; expected a name"),
        ({"mlflow": {"experiment": ""}}, "config.trackers.mlflow.experiment is empty"),
        ({"mlflow": {"page": "all"}}, "expected one of numbers, whole, none"),
        ({"tensorboard": {}}, "unknown tracker 'tensorboard'; choices: mlflow, wandb"),
        ({"notes": {"name": "hospital.diary"}}, "config.trackers.notes needs a value for: path"),
    ],
)
def test_wrong_options_are_refused(trainer, tmp_path, trackers, message):
    with pytest.raises(InputError) as error:
        trainer(tmp_path / "run", trackers)
    assert message in str(error.value)


@pytest.mark.exhaustive
def test_trained_encoders_need_no_module_of_a_tracker(trainer, tmp_path, monkeypatch):
    trainer(tmp_path / "run", diary(tmp_path / "diary")).run()
    monkeypatch.setitem(sys.modules, "hospital.diary", None)
    assert run.restore(tmp_path / "run").step == 4


class Slow(Tracker):
    """A network that is down: writes wait."""

    def __init__(self):
        self.up = threading.Event()

    def start(self, start):
        return "id"

    def scalars(self, step, kind, values):
        self.up.wait(30)


def test_nothing_waits_for_a_slow_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "_MOST", 3)
    monkeypatch.setitem(sending.PATIENCE, "failed", 0.1)
    slow, said = Slow(), []
    sender = sending.Sender("slow", slow, said.append)
    sender.start(Start(tmp_path, "run", {}))
    began = time.monotonic()
    for step in range(10):
        sender.scalars(step, "train", {"loss": math.nan})
    sender.outcome(Outcome({}))
    sender.close("failed")
    assert time.monotonic() - began < 5
    slow.up.set()
    assert said[0].startswith("tracker slow: 3 writes are waiting already; training goes on")
    assert said[1].startswith("tracker slow: 12 of its writes were lost: ") and len(said) == 2


def test_old_runs_have_no_trackers():
    stored = configs.plain(configs.base())
    del stored["trackers"]
    assert configs.completed(stored)["trackers"] == {}


# With the packages themselves, without a network.

VALUES = {"loss": 0.5, "retrieval/image_to_text/R@1": math.nan}


def pages(folder):
    made = {kind: folder / f"{kind}.html" for kind in ("whole", "numbers")}
    for kind, path in made.items():
        path.write_text(kind)
    return made


def tell(tracker, start, status="finished", step=1):
    found = tracker.start(start)
    tracker.scalars(step, "train", VALUES)
    tracker.scalars(step, "eval", VALUES)
    tracker.scalars(step, "timing", {"examples_per_second": 3.0})
    tracker.outcome(Outcome(VALUES, pages(start.folder)))
    tracker.close(status)
    return found


@pytest.mark.filterwarnings("default")
@pytest.mark.exhaustive
def test_mlflow_keeps_a_run_in_a_database(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra trackers")
    pytest.importorskip("sqlalchemy", reason="a database needs sqlalchemy and alembic")
    from mmrl.training.trackers.mlflow import Mlflow

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs.db"
    config = {"seed": 0, "towers": {"image": {"size": 64}}, "objectives": {}}
    options = {"tracking_uri": uri, "experiment": "chest"}
    for tracker in (Mlflow(**options), Mlflow(**options, page="whole")):
        tracker.check()
    first = tell(tracker, Start(tmp_path, "run", config), "stopped")
    client = mlflow.MlflowClient(uri)
    assert client.get_run(first).info.status == "KILLED"
    config["towers"]["image"]["size"] = 32
    again = Mlflow(**options)
    assert tell(again, Start(tmp_path, "run", config, first), step=2) == first
    found = client.get_run(first)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params == {"seed": "0", "towers.image.size": "64", "objectives": "{}"}
    assert found.data.tags["changed/towers.image.size"] == "32"
    assert "mlflow.user" not in found.data.tags and "mlflow.source.name" not in found.data.tags
    losses = client.get_metric_history(first, "train/loss")
    assert [(one.step, one.value) for one in losses] == [(1, 0.5), (2, 0.5)]
    assert math.isnan(found.data.metrics["results/retrieval/image_to_text/R_1"])
    assert {one.path for one in client.list_artifacts(first)} == {"whole.html", "numbers.html"}


@pytest.mark.filterwarnings("default")
@pytest.mark.exhaustive
def test_wandb_writes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra trackers")
    from mmrl.training.trackers.wandb import Wandb

    monkeypatch.chdir(tmp_path)
    options = {"project": "chest", "mode": "offline", "group": "a", "tags": ("b", "c")}
    tracker = Wandb(**options)
    tracker.check()
    first = tell(tracker, Start(tmp_path, "run", {"seed": 0, "towers": {"image": {"size": 64}}}))
    again = Wandb(**options, page="whole")
    start = Start(tmp_path, "run", {"seed": 0, "towers": {"image": {"size": 32}}}, first)
    assert tell(again, start, "failed", step=2) == first
    folders = sorted((tmp_path / "wandb").glob(f"offline-run-*-{first}"))
    assert len(folders) == 2
    sent = [{path.name for path in (one / "files").iterdir()} for one in folders]
    assert [one & {"whole.html", "numbers.html"} for one in sent] == [
        {"numbers.html"},
        {"whole.html"},
    ]
    assert not any(one & {"output.log", "requirements.txt", "diff.patch", "code"} for one in sent)
