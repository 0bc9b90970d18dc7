"""Checkpoints whose files are damaged, in every way there is: one line, and the last intact one."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.training import checkpoint, checksums
from mmrl.types import DamageError, InputError
from tests.conftest import ROOT

STATE = {"params": {"w": jnp.arange(40_000, dtype=jnp.float32)}, "step": jnp.int32(0)}
TARGET = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    ),
    STATE,
)


def state_of(step):
    return {"params": {"w": STATE["params"]["w"] + np.float32(step)}, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    saved = checkpoint.Checkpoints(workdir, keep=2)
    for step in (20, 40):
        saved.save(step, state_of(step), {"at": step}, {"config": {"seed": step}})
    saved.close()
    return workdir


@pytest.fixture
def workdir(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def step_files(workdir, step=40):
    folder = workdir / "checkpoints" / str(step)
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def zero(path, at=0.5):
    """Overwrites 64 bytes, or as many as there are, by zeros."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * at) if len(data) > 128 else 0
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def add(path):
    (path.parent / "more").write_bytes(b"more")


def opened(workdir, **options):
    return checkpoint.Checkpoints(workdir, read_only=True, **options)


def read_all(workdir, **options):
    """All that can be read of the latest checkpoint."""
    saved = opened(workdir, **options)
    state, data = saved.restore(TARGET)
    params = saved.restore_partial({"params": TARGET["params"]})
    arrays = saved.read_arrays(["params"])
    assert (params["params"]["w"] == arrays["params"]["w"]).all()
    return state, data, saved.meta()


def test_intact_checkpoints_are_read_and_list_every_file(workdir):
    state, data, meta = read_all(workdir)
    assert int(state["step"]) == 40 and data == {"at": 40} and meta == {"config": {"seed": 40}}
    stated = json.loads((workdir / "checkpoints" / "40" / checksums.NAME).read_text())["files"]
    assert sorted([*stated, checksums.NAME]) == step_files(workdir)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("spoil", [zero, flip, truncate, empty, os.unlink, add])
def test_damage_to_any_file_is_named_in_one_line_with_the_last_intact_step(
    two_steps, workdir, spoil
):
    """Every file of a step in turn, those of orbax and the checksums themselves included."""
    original = two_steps / "checkpoints" / "40"
    folder = workdir / "checkpoints" / "40"
    names = step_files(workdir)
    assert any(name.startswith("state/d/") for name in names) and "meta/metadata" in names
    for name in names:
        spoil(folder / name)
        with pytest.raises(DamageError) as error:
            read_all(workdir)
        text = str(error.value)
        assert text.startswith(f"checkpoint 40 in {workdir / 'checkpoints'} is damaged: '")
        assert (name if spoil is not add else "more") in text, text
        assert "the last intact checkpoint is step 20, which --fall-back takes" in text
        assert "\n" not in text
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
    read_all(workdir)


def test_parts_that_are_not_read_are_not_compared(workdir):
    """Reading the config of a run of many gigabytes stays fast."""
    (name,) = [n for n in step_files(workdir) if n.startswith("state/d/")][:1]
    zero(workdir / "checkpoints" / "40" / name)
    saved = opened(workdir)
    assert saved.meta() == {"config": {"seed": 40}}
    with pytest.raises(DamageError, match="state/d/"):
        saved.restore(TARGET)
    with pytest.raises(DamageError, match="state/d/"):
        saved.read_arrays(["params"])
    assert int(saved.restore(TARGET, 20)[0]["step"]) == 20


def test_readers_fall_back_and_change_nothing(workdir):
    zero(workdir / "checkpoints" / "40" / "meta" / "metadata")
    before, said = step_files(workdir), []
    state, _, meta = read_all(workdir, fall_back=True, say=said.append)
    assert int(state["step"]) == 20 and meta == {"config": {"seed": 20}}
    assert said[0].startswith("checkpoint 40 is damaged: '") and "moved" not in said[0]
    assert said[1] == "falls back to the last intact checkpoint, step 20"
    assert step_files(workdir) == before


def test_a_run_falls_back_and_moves_the_damaged_step_aside(workdir):
    (workdir / "damaged" / "40").mkdir(parents=True)  # of an earlier time
    zero(workdir / "checkpoints" / "40" / "meta" / "metadata")
    before, said = step_files(workdir), []
    saved = checkpoint.Checkpoints(workdir, fall_back=True, say=said.append)
    assert saved.steps() == [20] and saved.latest() == 20
    assert step_files(workdir, "../damaged/40.1") == before
    assert said[0].endswith(f"; moved to '{workdir / 'damaged' / '40.1'}'")
    saved.save(30, state_of(30), {"at": 30}, {})
    saved.close()
    assert opened(workdir).steps() == [20, 30]


def test_intact_runs_do_not_fall_back(workdir, tmp_path):
    said = []
    assert opened(workdir, fall_back=True, say=said.append).latest() == 40
    assert opened(tmp_path, fall_back=True, say=said.append).latest() is None
    assert not said


def test_without_an_intact_step_nothing_is_moved(workdir):
    for step in (20, 40):
        empty(workdir / "checkpoints" / str(step) / "meta" / "metadata")
    with pytest.raises(DamageError, match="no earlier checkpoint is intact"):
        checkpoint.Checkpoints(workdir, fall_back=True)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["20", "40"]


def unseal(folder):
    """A step as earlier versions wrote it."""
    (folder / checksums.NAME).unlink()
    shutil.copy(folder / "state" / "commit_success.txt", folder)


def test_a_checkpoint_without_checksums_is_read_and_that_is_said_once(workdir):
    unseal(workdir / "checkpoints" / "40")
    said = []
    state, *_ = read_all(workdir, say=said.append)
    assert int(state["step"]) == 40
    (line,) = said
    assert line.startswith("checkpoint 40 has no checksums, as earlier versions of mmrl wrote it")


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("spoil", [truncate, empty, os.unlink])
@pytest.mark.parametrize("name", ["meta/metadata", "data/metadata", "state/_METADATA", "state/d"])
def test_damage_to_a_checkpoint_without_checksums_is_one_line_where_it_shows(workdir, name, spoil):
    folder = workdir / "checkpoints" / "40"
    unseal(folder)
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        spoil(path)
    with pytest.raises(DamageError) as error:
        read_all(workdir)
    assert "checkpoint 40 in " in str(error.value) and "--fall-back" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_file_systems_and_desktops_are_no_damage(workdir):
    (workdir / "checkpoints" / "40" / "state" / ".nfs0001").write_bytes(b"x")
    read_all(workdir)


def test_a_step_that_is_not_there_is_no_damage(workdir):
    with pytest.raises(InputError, match=r"no checkpoint of step 9 .* steps: \[20, 40\]") as error:
        opened(workdir).meta(9)
    assert not isinstance(error.value, DamageError)


def test_the_size_of_a_checkpoint_is_known_before_it_is_written():
    assert checkpoint.size(TARGET) == checkpoint.size(STATE) == 40_000 * 4 + 4


FULL = """
import resource, signal, sys
from pathlib import Path
import jax
from mmrl.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
saved = checkpoint.Checkpoints(Path(sys.argv[1]), keep=9)
state = lambda step: {"w": jax.random.normal(jax.random.key(step), (100_000,))}
saved.save(1, state(1), {}, {})
saved.wait()
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    for step in range(2, 9):
        saved.save(step, state(step), {}, {})
        saved.wait()
except OSError as error:
    print(error.errno, error.filename)
saved.close()
print(saved.steps(), sorted(path.name for path in saved.folder.iterdir()))
"""


def save_until_full(*command):
    """Runs FULL; what it printed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_step_that_cannot_be_written_is_told_once_and_leaves_the_last_one(tmp_path):
    """A limit on the size of files stands for a full disk: nothing has to be mounted."""
    told, steps = save_until_full(sys.executable, "-c", FULL, str(tmp_path), "limit")
    assert told.startswith(f"{errno.EFBIG} /") and steps == "[1] ['1']"
    assert "w" in opened(tmp_path).read_arrays(["w"])


def test_a_disk_that_is_full_is_told_once_and_leaves_the_last_step(tmp_path):
    mount = ["unshare", "-rm", "sh", "-c"]
    script = f'mount -t tmpfs -o size=1200k tmpfs {tmp_path} && exec "$0" "$@"'
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mount, script, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")
    told, steps = save_until_full(*mount, script, sys.executable, "-c", FULL, str(tmp_path), "")
    assert told.startswith(f"{errno.ENOSPC} /") and steps == "[1, 2] ['1', '2']"
