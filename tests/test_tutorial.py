"""Every command of docs/tutorial.md, on a small table and with a tiny model."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import cv2
import jax
import pytest

import mmrl
from mmrl.data.corpus import records
from mmrl.data.sources.phantom import Phantom
from mmrl.data.text.reports import compose
from tests.commands import COMPILATIONS
from tests.conftest import ROOT
from tests.converted import GOLDEN

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
# Drawn radiographs look alike.
WAIVED = (
    "--config.data.waive_leaks=similar_image 1.0 drawn images look alike;report 1.0 one grammar"
)


def commands():
    """The commands of the page, in its order, as lists of arguments."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def shrunken(arguments):
    """The arguments with a tiny model; everything else stays as the page has it."""
    module, *rest = arguments[2:]
    if module == "mmrl.main":
        rest = [
            one.replace(
                "configs/pretrain.py:prepared", f"{ROOT}/configs/pretrain.py:prepared,smoke"
            )
            for one in rest
        ]
        rest += [WAIVED, f"--config.compile_cache={COMPILATIONS.name}"]
        rest += ["--config.evaluators={'retrieval': {'max_pairs': 16}}", "--config.total_steps=6"]
    return module, rest


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the page starts from."""
    (tmp_path / "images").mkdir()
    shutil.copytree(GOLDEN / "bert", tmp_path / "downloads" / "pubmedbert")
    source = Phantom(split="train", length=150, fractions=(1.0, 0.0, 0.0), render_size=32)
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "report", "patient_id"])
        for number, record in enumerate(records(source)):
            cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), record.images[0].load())
            report = compose(record.sections, ("findings", "impression"))
            writer.writerow([f"images/{number}.png", report, record.patient_id])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(module, arguments, monkeypatch):
    """Runs a command in this process, in the present folder; returns its exit status."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, module, raising=False)
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code
    return 0


def check_server(arguments):
    """Starts the server, asks it how it is, and stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *arguments[1:], f"--port={port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line.split()[-1] for line in lines if line.startswith("serving"))
        with urllib.request.urlopen(f"{address}/health", timeout=20) as answer:
            assert json.load(answer)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_every_command_of_the_tutorial_succeeds(desk, monkeypatch, capsys):
    told = commands()
    assert [arguments[:2] for arguments in told] == [["python", "-m"]] * len(told)
    modules = [arguments[2] for arguments in told]
    assert modules[-1] == "mmrl.serve" and len(told) == 12
    for arguments in told[:-1]:
        module, rest = shrunken(arguments)
        status = run(module, rest, monkeypatch)
        printed = capsys.readouterr()
        assert status in (0, None), f"{arguments}: {printed.err}"
    for made in ("compared/comparison.html", "runs/mine/report.html", "found.png"):
        assert (desk / made).stat().st_size > 1000
    check_server(told[-1])
    encoder = mmrl.load("encoders/mine")
    images = encoder.embed_images(["images/0.png", "images/1.png"])
    texts = encoder.embed_texts(["Small left pleural effusion."])
    assert (images @ texts.T).shape == (2, 1)
