"""What a run says of itself before its first step, and what it refuses."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from mmrl import files
from mmrl.devices import flops, hardware
from mmrl.training import forecast
from mmrl.types import MachineError


def step(*, keep=2, metric="", devices=1):
    """As much of a `TrainStep` as a forecast reads: a state of 4 MB, and a small program."""
    array = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    return SimpleNamespace(
        abstract={
            "params": {"a": jax.ShapeDtypeStruct((1000, 500), jnp.float32)},
            "moments": [jax.ShapeDtypeStruct((1_000_000,), jnp.bfloat16)],
        },
        config=SimpleNamespace(
            checkpoint=SimpleNamespace(keep=keep), best=SimpleNamespace(metric=metric)
        ),
        compiled=jax.jit(lambda a, b: (a @ b).sum()).lower(array, array).compile(),
        model_flops=lambda: 10**15,
        mesh=SimpleNamespace(size=devices),
    )


META = {"tokenizers": "x" * 500_000}


def disk(workdir, **options):
    return forecast.disk(step(**options), META, workdir)


@pytest.mark.parametrize(("keep", "metric", "count"), [(2, "", 3), (2, "val/loss", 4), (1, "", 2)])
def test_disk(keep, metric, count, tmp_path):
    found = disk(tmp_path, keep=keep, metric=metric)
    assert found.checkpoint == 4_000_000 + len(json.dumps(META)) and found.count == count
    assert found.needed == count * found.checkpoint


def test_old_checkpoints_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 5_000_000)
    with pytest.raises(MachineError) as error:
        forecast.check_disk(disk(tmp_path), tmp_path)
    assert error.value.status == 74
    assert str(error.value) == (
        f"--workdir={tmp_path}: 3 checkpoints of 4.5 MB need 13.5 MB, but only 5.0 MB are free; "
        "free some, choose another disk or lower config.checkpoint.keep"
    )
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "checkpoints" / "20" / "state").write_bytes(bytes(9_000_000))
    forecast.check_disk(disk(tmp_path), tmp_path)


def test_a_device_whose_peak_is_not_known(tmp_path):
    found = forecast.facts(step(), disk(tmp_path), 30)
    assert found["memory"].startswith("0.0 MB of each device (compiled step)")
    assert found["disk"].startswith("13.5 MB for 3 checkpoints, ")
    assert found["time"] == "not known beforehand on cpu; measured below"


def test_a_device_whose_peak_is_known(tmp_path, monkeypatch):
    chip = hardware.Chip("cpu", 1e14, 16e9)
    monkeypatch.setattr(hardware, "find", lambda kind: chip)
    monkeypatch.setattr(flops, "peak", lambda kind: chip.peak)
    found = forecast.facts(step(devices=2), disk(tmp_path), 30)
    assert "of each device, which has 16.0 GB" in found["memory"]
    # 30 steps of 1e15 FLOPs on two devices of 1e14 FLOP/s.
    assert found["time"].startswith("at least 2:30 for 30 steps, at the peak of the devices")
