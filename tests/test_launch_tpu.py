"""launch/tpu.sh and launch/tpu_worker.sh, run with a stub of gcloud."""

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.launch_stubs import PROCESS, SECRET, TRAIN, WAITS, Stubs, lines


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path)


TPU = "--zone=europe-west4-b --accelerator-type=v5litepod-16 --spot"
STATE = "queued-resources list"
WORKERS = "tpu_worker.sh state"
ABSENT, ACTIVE = ["", 0], ["ACTIVE", 0]


def workers(*states: str) -> list[Any]:
    return ["\n".join(f"mmrl-state {state}" for state in states), 0]


def verbs(stubs: Stubs) -> list[str]:
    """The recorded gcloud calls, in short."""
    short = []
    for call in stubs.calls("gcloud"):
        if call[1] == "storage":
            continue
        verb = call[4]
        inner = re.search(r"tpu_worker\.sh (\w+)", call[-1])
        short.append(inner.group(1) if verb == "ssh" and inner else verb)
    return short


def supervise(stubs: Stubs, extra: str = "") -> "subprocess.CompletedProcess[str]":
    return stubs.run(f"launch/tpu.sh run {TPU} {TRAIN} {extra}")


def test_tpu_dry_run_prints_what_a_run_without_incidents_calls(stubs: Stubs) -> None:
    arguments = "--secrets=HF_TOKEN=hf-id -- \"--config.objectives=('a b',)\" --config.batch_size=8"
    dry = supervise(stubs, f"--dry-run {arguments}")
    assert dry.returncode == 0 and dry.stderr == ""
    assert stubs.calls() == []
    stubs.rules = [
        [STATE, [ABSENT, ACTIVE]],
        [WORKERS, [workers("idle"), workers("exit 0", "exit 0")]],
    ]
    real = supervise(stubs, arguments)
    assert (real.returncode, real.stderr) == (0, "training is done\n")
    planned = lines(dry.stdout)
    assert planned == stubs.calls()
    # The inner command line survives two shells.
    inner = shlex.split(next(line[-1] for line in planned if "start" in line[-1]))
    assert inner[-2:] == ["--config.objectives=('a b',)", "--config.batch_size=8"]


def test_tpu_is_created_again_after_a_preemption_and_training_restarts(stubs: Stubs) -> None:
    waiting, going, gone = (["WAITING_FOR_RESOURCES", 0], ["SUSPENDING", 0], ["SUSPENDED", 0])
    seen = [workers("idle"), workers("running"), ["", 255], workers("idle"), workers("exit 0")]
    stubs.rules = [
        [STATE, [ABSENT, waiting, ACTIVE, going, going, gone, ACTIVE]],
        [WORKERS, seen],
    ]
    done = supervise(stubs, "--delete-when-done")
    assert done.returncode == 0, done.stderr
    assert "preempted; starting again (restart 1 of 100)" in done.stderr
    once = ["scp", "setup", "start"]
    assert [verb for verb in verbs(stubs) if verb not in ("list", "state")] == [
        *["create", *once],
        *["delete", "create", *once, "delete"],
    ]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("state", ["exit 75", "lost"])
def test_tpu_that_stays_only_restarts_training(stubs: Stubs, state: str) -> None:
    first = workers(state, "exit 75", "exit 1")
    stubs.rules = [
        [STATE, [ACTIVE]],
        [WORKERS, [workers("exit 0"), first, first, workers("exit 0")]],
    ]
    assert supervise(stubs).returncode == 0
    work = [verb for verb in verbs(stubs) if verb not in ("list", "state")]
    assert work == ["scp", "setup", "start", "start"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["", 0], "expected a bucket created with --enable-hierarchical-namespace"),
        (["", 1], "cannot read the properties of gs://bucket; see above"),
    ],
)
def test_tpu_refuses_buckets_that_cannot_rename_folders(
    stubs: Stubs, answer: list[Any], message: str
) -> None:
    stubs.rules = [["storage buckets describe gs://bucket ", [answer]]]
    refused = supervise(stubs)
    assert refused.returncode == 2 and message in refused.stderr
    assert verbs(stubs) == []


def test_tpu_run_gives_up_after_max_restarts(stubs: Stubs) -> None:
    stubs.rules = [[STATE, [ACTIVE]], [WORKERS, [workers("exit 75")]]]
    done = supervise(stubs, "--max-restarts=2")
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == (
        "error: preempted again after 2 restarts, --max-restarts=2"
    )
    assert verbs(stubs).count("start") == 3


def test_tpu_failure_of_training_is_not_repeated(stubs: Stubs) -> None:
    stubs.rules = [[STATE, [ACTIVE]], [WORKERS, [workers("idle"), workers("exit 3", "exit 1")]]]
    done = supervise(stubs)
    assert done.returncode == 3 and "training failed with status 3" in done.stderr
    assert verbs(stubs).count("start") == 1
    # The same, when the TPU is gone: the workers failed because another was taken away.
    gone = [ACTIVE, ["SUSPENDED", 0], ["SUSPENDED", 0], ACTIVE]
    seen = [workers("idle"), workers("exit 134"), workers("idle"), workers("exit 0")]
    stubs.rules = [[STATE, gone], [WORKERS, seen]]
    assert supervise(stubs).returncode == 0
    assert verbs(stubs).count("start") == 2 and verbs(stubs).count("create") == 1


def test_tpu_run_takes_up_watching_a_training_that_runs(stubs: Stubs) -> None:
    stubs.rules = [[STATE, [ACTIVE]], [WORKERS, [workers("running", "running"), workers("exit 0")]]]
    assert supervise(stubs).returncode == 0
    assert "start" not in verbs(stubs) and "setup" not in verbs(stubs)


def test_tpu_stops_workers_that_hang_after_another_ended(stubs: Stubs) -> None:
    seen = [workers("idle"), workers("exit 0", "running")]
    stubs.rules = [[STATE, [ACTIVE]], [WORKERS, seen]]
    done = supervise(stubs, "--poll=60 --grace=100")
    assert done.returncode == 137 and "stopping them" in done.stderr
    assert verbs(stubs)[-2:] == ["stop", "list"]


def test_tpu_pods_slices_and_the_other_commands(stubs: Stubs) -> None:
    create = "create mmrl --zone=z --accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e"
    queue = "gcloud compute tpus queued-resources"
    golden = {
        "create --accelerator-type=v6e-64": f"{queue} {create} --node-id=mmrl --quiet",
        "create --accelerator-type=v6e-64 --slices=2 --spot": (
            f"{queue} {create} --node-count=2 --node-prefix=mmrl --spot --quiet"
        ),
        "delete --project=p": f"{queue} delete mmrl --zone=z --project=p --force --quiet",
        "logs --worker=3 --connect=iap": (
            f"{queue} ssh mmrl --zone=z --node=0 --worker=3 --quiet --tunnel-through-iap "
            "'--command=tail -n 100 -F mmrl-run/log'"
        ),
    }
    for given, expected in golden.items():
        command, *options = given.split()
        full = f"launch/tpu.sh {command} --zone=z {' '.join(options)}"
        assert stubs.run(f"{full} --dry-run").stdout == expected + "\n"
        assert stubs.run(full).returncode == 0
        assert stubs.calls() == [shlex.split(expected)]


def test_tpu_worker_trains_detached_with_secrets_and_stops_on_request(stubs: Stubs) -> None:
    (stubs.folder / "sleep").unlink()
    (stubs.folder / "mkdir").unlink()
    (stubs.folder / "mmrl-venv/bin").mkdir(parents=True)
    stubs.install("mmrl-venv/bin/python", PROCESS)
    stubs.rules = [["secrets versions access latest --secret=id", [[SECRET, 0]]]]
    place = "os.environ['TOKEN'], os.environ['MMRL_DISTRIBUTED'], sys.argv[1:]"
    shows = f"print({place}, flush=True); {WAITS}"
    extra = {"HOME": str(stubs.folder), "BEHAVIOUR": json.dumps([shows])}
    worker = "launch/tpu_worker.sh"
    assert stubs.run(f"{worker} state", extra).stdout == "mmrl-state idle\n"
    # Returns although training goes on: nothing of the connection is held open.
    stubs.run(f"{worker} start {TRAIN} --secrets=TOKEN=id -- --config.seed=1", extra)
    log = stubs.folder / "mmrl-run/log"
    until(lambda: log.is_file() and "ready" in log.read_text())
    config, _ = TRAIN.split()
    bucket = f"{stubs.folder}/mmrl-buckets/bucket"
    arguments = ["-u", "-m", "mmrl.main", config, f"--workdir={bucket}/run", "--config.seed=1"]
    assert log.read_text() == f"{SECRET} auto {arguments}\nready\n"
    assert SECRET not in str(stubs.calls())
    (mounted,) = stubs.calls("gcsfuse")
    assert mounted[-2:] == ["bucket", bucket]
    assert stubs.run(f"{worker} state", extra).stdout == "mmrl-state running\n"
    assert stubs.run(f"{worker} stop", extra).returncode == 0
    assert stubs.run(f"{worker} state", extra).stdout == "mmrl-state exit 75\n"
    (stubs.folder / "mmrl-run/exit").unlink()
    assert stubs.run(f"{worker} state", extra).stdout == "mmrl-state lost\n"


def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 10 seconds in vain")
