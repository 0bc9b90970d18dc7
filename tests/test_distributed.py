"""Runs of several processes: settings, roll call, and two processes with four devices each."""

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from mmrl import cli
from mmrl.devices import distributed, rollcall
from mmrl.training import train
from mmrl.types import InputError
from tests.conftest import QUICK_XLA_FLAGS, ROOT

PLACE = {"coordinator": "host:1234", "num_processes": "4", "process_id": "3"}
NOTHING = dict.fromkeys(PLACE)
VARIABLES = {f"MMRL_{name.upper()}": value for name, value in PLACE.items()}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(processes, code):
    """(stdout, stderr) of each process, after checking exit statuses."""
    try:
        printed = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), "\n".join(err[-3000:] for _, err in printed)
    return printed


# Settings.


def test_nothing_given_is_a_run_of_one_process():
    assert distributed.read(NOTHING, {"MMRL_COORDINATOR": ""}) is None
    assert distributed.start(None) == ()
    assert distributed.start(distributed.Settings("host:1", 1, 0)) == ()


def test_flags_and_variables_say_the_same():
    expected = distributed.Settings("host:1234", 4, 3)
    assert distributed.read(PLACE, {}) == expected
    assert distributed.read(NOTHING, VARIABLES) == expected
    assert distributed.read(PLACE, VARIABLES) == expected
    mixed = {**NOTHING, "process_id": "3"}
    both = {**VARIABLES, "MMRL_PROCESS_ID": "", "MMRL_START_TIMEOUT": "9.5"}
    assert distributed.read(mixed, both) == distributed.Settings("host:1234", 4, 3, 9.5)


@pytest.mark.parametrize(
    ("given", "environment", "text"),
    [
        ({"coordinator": "h:1"}, {}, "missing: --num_processes (MMRL_NUM_PROCESSES), --process_id"),
        ({}, {"MMRL_PROCESS_ID": "0"}, "given: --process_id (MMRL_PROCESS_ID); missing: --coord"),
        (PLACE, {"MMRL_PROCESS_ID": "1"}, "--process_id=3 contradicts MMRL_PROCESS_ID=1"),
        (PLACE, {"MMRL_DISTRIBUTED": "auto"}, "MMRL_DISTRIBUTED=auto contradicts --coordinator"),
        ({}, {"MMRL_DISTRIBUTED": "slurm"}, "MMRL_DISTRIBUTED=slurm; expected auto"),
        ({**PLACE, "process_id": "4"}, {}, "--process_id=4 (MMRL_PROCESS_ID); expected 0 to 3"),
        ({**PLACE, "process_id": "-1"}, {}, "expected 0 to 3"),
        ({**PLACE, "num_processes": "0"}, {}, "expected a whole number from 1"),
        ({**PLACE, "coordinator": "host"}, {}, "expected host:port"),
        ({**PLACE, "coordinator": "host:99999"}, {}, "a port from 1 to 65535"),
        (PLACE, {"MMRL_START_TIMEOUT": "soon"}, "MMRL_START_TIMEOUT=soon; expected seconds"),
    ],
)
def test_incomplete_and_contradictory_settings_are_refused(given, environment, text):
    with pytest.raises(InputError) as error:
        distributed.read({**NOTHING, **given}, environment)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def no_cluster(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "MMRL_", "TPU_")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_slurm_is_detected(no_cluster):
    slurm = {"JOB_ID": 4097, "STEP_NODELIST": "node[07-09]", "NTASKS": 3, "PROCID": 2, "LOCALID": 0}
    for name, value in slurm.items():
        no_cluster.setenv(f"SLURM_{name}", str(value))
    found = distributed.read(NOTHING, {"MMRL_DISTRIBUTED": "auto"})
    assert found == distributed.Settings("node07:61441", 3, 2, 300.0, (0,))


def test_detection_that_finds_nothing_is_refused(no_cluster):
    with pytest.raises(InputError, match="finds no Cloud TPU, Slurm, Kubernetes or Open MPI"):
        distributed.read(NOTHING, {"MMRL_DISTRIBUTED": "auto"})


def test_commands_that_are_always_one_process_say_so(no_cluster):
    cli._start(cli.new_flags())
    no_cluster.setenv("MMRL_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match="always one process, but MMRL_NUM_PROCESSES=2 asks"):
        cli._start(cli.new_flags())


# Roll call.


def call(*processes, count=None, timeout=20.0, port=None):
    """Runs the roll call of each process in a thread; returns their results or errors."""
    address, answers = f"127.0.0.1:{port or free_port()}", {}

    def one(place, process, expected):
        try:
            answers[place] = rollcall.call(address, expected, process, timeout)
        except (InputError, rollcall.StartError) as error:
            answers[place] = error

    threads = [
        threading.Thread(target=one, args=(place, process, expected))
        for place, (process, expected) in enumerate(
            (p, count or len(processes)) if isinstance(p, int) else p for p in processes
        )
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # in this order
    for thread in threads:
        thread.join()
    return answers


def test_all_learn_who_came_in_whatever_order():
    host = socket.gethostname()
    assert call(2, 1, 0, 3) == dict.fromkeys(range(4), (host,) * 4)


def test_all_learn_who_is_missing():
    answers = call(1, 0, count=4, timeout=1.5)
    host = socket.gethostname()
    for error in answers.values():
        assert isinstance(error, rollcall.StartError)
        assert ": process 2, 3 of 4; present: " in str(error)
        assert f"present: 0 on {host}, 1 on {host}" in str(error)


def test_without_process_0_its_address_is_told():
    (error,) = call(1, count=2, timeout=-4.0, port=9).values()
    assert "process 0 at 127.0.0.1:9 could not be reached" in str(error)


def test_an_id_given_twice_and_another_count_are_told_to_all():
    answers = call(0, 1, 1, count=3)
    assert all("process_id 1 was given twice" in str(error) for error in answers.values())
    answers = call((0, 2), (1, 3))
    assert all("expects 3 processes, process 0 on" in str(error) for error in answers.values())


def test_strangers_at_the_port_are_ignored():
    port = free_port()

    def knock():
        for _ in range(50):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\n")
                    return
            except OSError:
                time.sleep(0.02)

    thread = threading.Thread(target=knock)
    thread.start()
    assert len(call(0, 1, port=port)[0]) == 2
    thread.join()


# Being told to stop.


def test_sigterm_and_the_first_sigint_only_ask_to_stop():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        said = []
        with distributed.Preemption(said.append) as preemption:
            assert not preemption.reached()
            signal.raise_signal(number)
            assert preemption.reached()
            assert (
                said
                == [
                    "stopping: an evaluation in progress ends, and the current step is saved; "
                    "press Ctrl-C again to stop at once"
                ][: number == signal.SIGINT]
            )
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(number)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# Agreement, between two real processes.

AGREE = """
import sys
from pathlib import Path
import numpy as np
from mmrl.devices import distributed
from mmrl.types import BusyError, InputError, MachineError
port, folder, process = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
print(distributed.start(distributed.Settings(f"localhost:{port}", 2, process)))
distributed.agree({"seed": 0, "size": 1}, "config")
(folder / str(process)).touch()
distributed.await_shared(folder / "0")
print(distributed.gather_rows(np.int32([4 - process, 7])))
for check in (
    lambda: distributed.agree({"seed": process}, "config"),
    lambda: distributed.await_shared(folder / str(2 * process), seconds=0.1),
):
    try:
        check()
    except InputError as error:
        print(error)

def fail(kind, *arguments):
    assert process == 0  # it is called nowhere else
    raise kind("first " * 300, *arguments)

print(distributed.by_first(lambda: {"steps": [process, 2]}))
for kind, *arguments in ((BusyError,), (MachineError, 73)):
    try:
        distributed.by_first(lambda: fail(kind, *arguments))
    except kind as error:
        print(kind.__name__, str(error) == "first " * 300, vars(error))
distributed.exit_soon(1)
"""


def test_processes_that_differ_are_told_apart(tmp_path):
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AGREE, port, str(tmp_path), str(process)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    host = socket.gethostname()
    for out, _ in finish(processes, 0):
        came, rows, *refusals = [line for line in out.splitlines() if "[Gloo]" not in line]
        assert (came, rows) == (str((host, host)), "[3 4 7]")
        assert refusals[0].startswith("config is not the same on every process: process 1 differs")
        assert "/" in refusals[1] and "process 1 differs from process 0" in refusals[1]
        assert refusals[2] == "{'steps': [0, 2]}"
        assert refusals[3:] == ["BusyError True {}", "MachineError True {'status': 73}"]


# Two processes of four devices against one of eight. Parameters are split over both processes.

CONFIG = """
from configs import pretrain

def get_config():
    config = pretrain.get_config("paper,smoke")
    config.total_steps, config.log_every, config.batch_size = 8, 1, 8
    config.eval_every, config.checkpoint.every = 0, 1000
    config.data.length, config.data.num_perturbed = 150, 1
    config.towers.text.length, config.towers.text.dropout = 24, 0.1
    # A teacher, and texts of other rows, which may lie on the other process.
    reads = {"image": "average/image.embedding", "text": "text@negative_text.embedding"}
    config.objectives.siglip = {"weight": 0.5, "reads": reads}
    config.derived.negative_text = {"name": "hard_negatives", "draw": "hardest"}
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.evaluators = {"retrieval": {"max_pairs": 16}}
    config.compile_cache, config.tensorboard = "", False
    return config
"""
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    (path / "config.py").write_text(CONFIG)
    return path


def start_two(folder, workdir, *extra):
    """Two processes of four devices each."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{QUICK_XLA_FLAGS} --xla_force_host_platform_device_count=4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # A cache may be set; several processes on CPU must not use it.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compilations"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "mmrl.main", f"--config={folder / 'config.py'}"]
    command += [f"--workdir={workdir}", f"--coordinator=localhost:{free_port()}", *extra]
    return [
        subprocess.Popen(
            [*command, "--num_processes=2", f"--process_id={process}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]


def train_here(folder, workdir):
    config = runpy.run_path(str(folder / "config.py"))["get_config"]()
    with jax.numpy_dtype_promotion("standard"):
        train.Trainer(config, workdir).run()


def read_lines(workdir, kind="train"):
    """Step -> logged values."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line.pop("step"): line for line in lines if line.pop("kind") == kind}


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """The logged values of one process with eight devices."""
    train_here(folder, folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module")
def preempted(folder):
    """Two processes, of which the second received SIGTERM: (workdir, saved step).

    They evaluate after each step, so that a step takes longer than it does to pass the word on.
    """
    workdir = folder / "stopped"
    processes = start_two(folder, workdir, "--config.eval_every=1", "--nosummary")
    log, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and '"step": 2' in log.read_text()):
        assert time.monotonic() < deadline and processes[1].poll() is None, finish(processes, 75)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    printed = finish(processes, 75)
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    for _, err in printed:
        assert f"stopped: step {step} is saved; start the same command again" in err
    assert f"processes: 0 on {socket.gethostname()}, 1 on" in printed[0][0]
    assert "loss" not in printed[1][0]  # process 0 speaks for all
    return workdir, step


@pytest.mark.slow
def test_two_processes_train_as_one_does(uninterrupted, preempted):
    """All objectives, dropout, FSDP: every logged value agrees to 1e-5, relative."""
    workdir, step = preempted
    one, two = read_lines(uninterrupted), read_lines(workdir)
    assert list(two) == list(range(1, step + 1))
    for number, figures in two.items():
        for name, value in figures.items():
            # A rate is null where nothing was counted.
            expected = one[number][name]
            same = None if expected is None else pytest.approx(expected, rel=1e-5)
            assert value == same, (number, name)


@pytest.mark.slow
def test_one_process_continues_where_two_were_stopped(folder, uninterrupted, preempted):
    workdir, step = shutil.copytree(preempted[0], folder / "continued"), preempted[1]
    assert step not in read_lines(workdir, "eval")
    train_here(folder, workdir)
    one, resumed = read_lines(uninterrupted), read_lines(workdir)
    assert list(resumed) == list(range(1, STEPS + 1))
    assert resumed[step + 1]["loss"] == pytest.approx(one[step + 1]["loss"], rel=1e-6)
    assert resumed[STEPS]["loss"] == pytest.approx(one[STEPS]["loss"], rel=1e-5)
    assert step in read_lines(workdir, "eval")  # what the preemption left no time for


@pytest.mark.exhaustive
def test_two_processes_end_with_one_report(folder, uninterrupted, preempted):
    workdir = shutil.copytree(preempted[0], folder / "both")
    printed = finish(start_two(folder, workdir), 0)
    assert f"resumed from step {preempted[1]}" in printed[0][0] and "resumed" not in printed[1][0]
    assert (workdir / "report.html").exists()
    one, two = read_lines(uninterrupted), read_lines(workdir)
    assert two[STEPS]["loss"] == pytest.approx(one[STEPS]["loss"], rel=1e-5)
    assert read_lines(workdir, "eval")[STEPS] == read_lines(uninterrupted, "eval")[STEPS]
    assert [p.name for p in (workdir / "results").iterdir() if p.name >= f"{STEPS:08d}"] == [
        f"{STEPS:08d}.json"
    ]
