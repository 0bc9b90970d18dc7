"""A whole run on a server of the S3 protocol, which the test starts on this machine.

It needs the packages s3fs and moto[server], which are not among those of the other tests.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from mmrl import locks
from mmrl.training import checkpoint, checksums
from tests.conftest import ROOT

pytestmark = pytest.mark.exhaustive

pytest.importorskip("moto", reason="needs moto[server]")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs")

STEPS, EVERY = 40, 4  # training is to last longer than the first upload


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    """The environment of commands that reach an empty bucket named "bucket"."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            given = {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "not-a-secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            files = s3fs.S3FileSystem(
                endpoint_url=address, key="test", secret="not-a-secret", skip_instance_cache=True
            )
            files.mkdir("bucket")
            yield given, files
        finally:
            process.terminate()


def command(module, *arguments, cache, env=None):
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of the arrays only equality counts
    environment = {**os.environ, **quick, "MMRL_CACHE": str(cache), **(env or {})}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, status=0):
    out, _ = process.communicate(timeout=280)
    assert process.returncode == status, out
    return out


def training(workdir, compiled):
    return (
        "--config=configs/pretrain.py:smoke",
        f"--workdir={workdir}",
        f"--config.total_steps={STEPS}",
        f"--config.checkpoint.every={EVERY}",
        "--config.log_every=1",
        f"--config.compile_cache={compiled}",
        "--nosummary",
    )


def arrays(workdir):
    saved = checkpoint.Checkpoints(workdir, read_only=True)
    try:
        assert saved.latest() == STEPS
        return saved.read_arrays(["params", "opt_state", "variables", "average", "step"])
    finally:
        saved.close()


def whole_steps(files):
    """The checkpoints in the bucket whose checksums arrived, ascending."""
    files.invalidate_cache()
    names = files.find("bucket/runs/one/checkpoints")
    return sorted(int(name.rsplit("/", 2)[1]) for name in names if name.endswith(checksums.NAME))


def test_a_killed_run_in_a_bucket_ends_like_one_in_a_folder(server, tmp_path):
    env, files = server
    address, compiled = "s3://bucket/runs/one", tmp_path / "compiled"
    local = tmp_path / "local"
    finish(command("mmrl.main", *training(local, compiled), cache=tmp_path / "c"))

    first = command("mmrl.main", *training(address, compiled), cache=tmp_path / "c", env=env)
    until = time.monotonic() + 200
    while time.monotonic() < until and first.poll() is None and not whole_steps(files):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    killed = first.communicate()[0]
    steps = whole_steps(files)
    assert steps and first.returncode == -signal.SIGKILL, killed
    assert files.exists(f"bucket/runs/one/{locks.NAME}")

    # Another machine has no record of the dead owner, and would wait; here its lock is removed.
    files.rm(f"bucket/runs/one/{locks.NAME}")
    out = finish(
        command("mmrl.main", *training(address, compiled), cache=tmp_path / "other", env=env)
    )
    assert f"uploaded: {address}" in out and f"resumed from step {steps[-1]}" in out
    assert "not-a-secret" not in out + killed

    got = tmp_path / "got"
    files.invalidate_cache()
    for name in files.find("bucket/runs/one"):
        target = got / name.removeprefix("bucket/runs/one/")
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(name, str(target))
    assert not (got / locks.NAME).exists()
    for path in (got / "checkpoints").iterdir():
        checksums.check(path)
    assert b"not-a-secret" not in b"".join(p.read_bytes() for p in got.glob("*.json"))
    import jax

    ours, theirs = (dict(jax.tree_util.tree_leaves_with_path(arrays(one))) for one in (got, local))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for key in ours:
        np.testing.assert_array_equal(np.asarray(ours[key]), np.asarray(theirs[key]), str(key))
    assert metrics(got) == metrics(local)

    cache, judged = tmp_path / "other", f"evaluations/val-{STEPS:08d}/results.json"
    for of, to, settings in ((address, "s3://bucket", env), (local, tmp_path, {})):
        for rest in (
            ("mmrl.evaluate", f"--workdir={of}", "--split=val"),
            ("mmrl.export", "embeddings", f"--workdir={of}", "--split=val", f"--out={to}/e"),
            ("mmrl.export", "encoder", f"--workdir={of}", f"--out={to}/w"),
        ):
            out = finish(command(*rest, cache=cache, env=settings))
            assert ("uploaded: s3://bucket/" in out) == (of == address)
    files.invalidate_cache()
    found = files.find("bucket")
    assert not [name for name in found if name.endswith(locks.NAME)]
    assert f"bucket/runs/one/{judged}" in found and "bucket/e/manifest.json" in found
    given = [
        json.loads(one)
        for one in (files.cat_file(f"bucket/runs/one/{judged}"), (local / judged).read_bytes())
    ]
    assert given[0]["results"] == given[1]["results"]
    # Manifests state where a run lies; all arrays are equal.
    for folder, count in (("e", 1), ("w", 2)):
        arrays_of = [
            path
            for path in (tmp_path / folder).rglob("*")
            if path.suffix in (".npy", ".safetensors", ".npz", ".parquet")
        ]
        assert len(arrays_of) >= count
        for path in arrays_of:
            key = f"bucket/{path.relative_to(tmp_path).as_posix()}"
            assert files.cat_file(key) == path.read_bytes(), key


def metrics(run):
    """The lines of the log without what depends on the clock."""
    timed = {"time", "seconds", "per_second", "wait", "mfu", "flops"}
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not any(word in k for word in timed)} for line in lines
    ]


def test_a_bucket_that_is_missing_and_a_server_that_is_gone_are_told_in_one_line(server, tmp_path):
    env, files = server
    arguments = training("s3://nobucket/run", tmp_path)
    out = finish(command("mmrl.main", *arguments, cache=tmp_path / "c", env=env), status=69)
    assert "cannot write to s3://nobucket/run: " in out and "Traceback" not in out
    assert not files.exists("nobucket")
    gone = {**env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    out = finish(command("mmrl.main", *arguments, cache=tmp_path / "c", env=gone), status=69)
    assert "s3://nobucket/run: " in out and "Traceback" not in out
