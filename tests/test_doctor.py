"""mmrl.doctor: what it finds, and that a broken package is a finding and not a traceback."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl import doctor
from mmrl.data.image import images
from mmrl.types import MachineError
from tests.conftest import ROOT


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; returns its lines, or what --json prints."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["doctor", "--norun", *arguments])
        doctor._FLAGS.unparse_flags()
        doctor._FLAGS(sys.argv)
        try:
            doctor.main()
        finally:
            call.out = capsys.readouterr().out
        return json.loads(call.out) if "--json" in arguments else call.out.splitlines()

    return call


def test_a_sound_machine_has_no_problem(run, monkeypatch):
    monkeypatch.setenv("MMRL_TOKEN", "hidden")
    found = {one["about"]: one for one in run("--json")}
    assert {one["status"] for one in found.values()} <= {"ok", "note"}
    assert found["devices"]["found"].endswith("cpu: cpu")
    assert "MMRL_TOKEN=..." in found["settings"]["found"]
    for name in ("PNG", "DICOM lossless JPEG", "DICOM JPEG-LS", "DICOM JPEG 2000"):
        assert name in found["decoders"]["found"]


def test_problems_are_named_with_their_remedy(run, monkeypatch):
    def broken(data):
        raise RuntimeError("no codec")

    monkeypatch.setattr(images, "decode", broken)
    monkeypatch.setattr(doctor, "_nvidia", lambda: "NVIDIA H100")
    with pytest.raises(MachineError, match=r"problems in 2 of \d+: GPU, decoders") as caught:
        run()
    assert caught.value.status == 69
    assert "problem  GPU: the driver shows NVIDIA H100, and jax does not use it" in run.out
    assert "pip install 'jax[cuda13]'" in run.out
    assert "problem  decoders: PNG (no codec); JPEG (no codec)" in run.out


def test_wrong_pixels_are_found(run, monkeypatch):
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda data: 255 - decode(data))
    with pytest.raises(MachineError, match="decoders"):
        run()
    assert "PNG (wrong pixels)" in run.out


def test_versions_outside_the_ranges_and_missing_packages_are_found(run, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "optax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.26.0" if name == "numpy" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MachineError, match="packages"):
        run()
    assert "numpy 1.26.0 is installed, >=2" in run.out and "optax" in run.out


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(run, monkeypatch):
    def fails():
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor, "_devices", fails)
    with pytest.raises(MachineError):
        run()
    assert "the check failed: OSError: no such device" in run.out
    assert "ok       decoders" in run.out


def test_the_limit_of_a_container_counts(monkeypatch):
    monkeypatch.setattr(doctor, "_allowed_memory", lambda: 2**30)
    (found,) = doctor._memory()
    assert found.status == "problem" and found.found.startswith("1.0 GiB, of ")


@pytest.mark.exhaustive
def test_two_steps_are_trained(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mmrl.doctor", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout)[-1]
    assert last["about"] == "two steps" and last["status"] == "ok"
    assert last["found"].count(".") == 2 and not list(Path(ROOT).glob(".mmrl-doctor-*"))
