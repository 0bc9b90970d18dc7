"""Local copies of object stores: what a store holds at every moment, and what a start makes of it.

The stores are memory:// and file://; tests/test_remote_s3.py has a server of the S3 protocol.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time

import fsspec
import pytest

from mmrl import cli, locks
from mmrl.data.reading import within
from mmrl.remote import lease, mirror, opened, place, store
from mmrl.training import checkpoint, checksums, initial
from mmrl.types import BusyError, DamageError, InputError, MachineError
from tests import commands, stubs
from tests.conftest import ROOT
from tests.test_cli_here import TINY

RUN = "memory://bucket/run"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A cache of the test, an empty store in memory, and no waiting."""
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lease, "SETTLE", 0)
    monkeypatch.setattr(store, "_PAUSES", (0.001, 0.001))
    monkeypatch.setattr(store, "PATIENCE", 0.01)
    monkeypatch.setattr(mirror, "LAST_PATIENCE", 0.01)
    monkeypatch.setattr(mirror, "INTERVAL", 3600)  # tests upload themselves
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield
    with contextlib.suppress(MachineError, BusyError), opened.closing():
        pass
    memory.store.clear()
    opened._FETCHED.clear()
    while opened._HELD:
        opened._HELD.pop().release()


def objects(folder="/bucket/run/"):
    """Key -> content of the store in memory."""
    found = fsspec.filesystem("memory").store
    return {
        name.removeprefix(folder): file.getvalue()
        for name, file in found.items()
        if name.startswith(folder) and not name.endswith(locks.NAME)
    }


def write(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def save(folder, step, content):
    """A complete step, as training leaves it, and the log that must not lag behind it."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{step}\n")
    made = folder / "checkpoints" / str(step)
    write(made, state__a=content, state__b=content * 2, data__metadata="{}")
    checksums.write(made)


def drop(folder, step):
    for path in sorted((folder / "checkpoints" / str(step)).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "checkpoints" / str(step)).rmdir()


def opened_for_writing(address=RUN):
    folder = opened.writing("--workdir", address, lambda line: None)
    return folder, opened._WRITTEN[address]


def close():
    with opened.closing():
        pass


def sealed(found):
    return {int(key.split("/")[1]) for key in found if key.endswith(checksums.NAME)}


def check_whole(found, tmp_path):
    """Every step with checksums is as it was written, and the log reaches it."""
    for step in sealed(found):
        made = tmp_path / "seen" / str(time.monotonic_ns())
        for key, content in found.items():
            if key.startswith(f"checkpoints/{step}/"):
                path = made / key.removeprefix(f"checkpoints/{step}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        checksums.check(made)
        assert f"{step}\n".encode() in found["metrics.jsonl"]


class Broken(Exception):
    """A store that is gone, as its package puts it."""


@pytest.fixture
def fail_after(monkeypatch):
    """Lets the store do some changes, and fail from then on; returns how many it did."""
    limit, done = [10**9], [0]

    def guarded(method):
        def change(self, *args, **kwargs):
            if locks.NAME not in str(args) and ".clock" not in str(args):
                if done[0] >= limit[0]:
                    raise Broken("no route to host")
                done[0] += 1
            return method(self, *args, **kwargs)

        return change

    kind = fsspec.get_filesystem_class("memory")
    for name in ("put_file", "rm_file"):
        monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))

    def set_limit(count):
        limit[0], done[0] = count, 0
        return done

    return set_limit


def test_a_step_is_in_the_store_whole_or_not_at_all_wherever_an_upload_ends(fail_after, tmp_path):
    """Of two kept steps a third one takes the first one's place, and one is written anew."""
    folder, own = opened_for_writing()
    save(folder, 1, "one")
    save(folder, 2, "two")
    assert own.push() > 0 and sealed(objects()) == {1, 2}
    save(folder, 3, "three")
    drop(folder, 1)
    write(folder / "checkpoints/2", state__a="zwei")
    checksums.write(folder / "checkpoints/2")
    failures = 0
    while True:
        done = fail_after(failures)
        try:
            own.push()
        except store.StoreError as error:
            assert "no route to host" in str(error) and RUN in str(error)
        check_whole(objects(), tmp_path)
        if 3 not in sealed(objects()):
            assert 1 in sealed(objects())  # the newer one is there before the older one goes
        if done[0] < failures:
            break
        failures += 1
    assert failures >= 1 and sealed(objects()) == {2, 3}
    assert not any(key.startswith("checkpoints/1/") for key in objects())
    assert objects()["checkpoints/2/state/a"] == b"zwei"
    close()


def test_the_log_of_a_step_is_uploaded_before_its_checksums(monkeypatch):
    folder, own = opened_for_writing()
    save(folder, 1, "one")
    order, put = [], store.Store.put
    monkeypatch.setattr(
        store.Store, "put", lambda self, path, key, *a: (order.append(key), put(self, path, key))
    )
    own.push()
    assert order[0] == "metrics.jsonl" and order[-1] == f"checkpoints/1/{checksums.NAME}"
    close()


def test_what_is_unfinished_or_of_this_machine_stays_here():
    folder, own = opened_for_writing()
    write(
        folder,
        run_dot_lock="x",
        note_dot_txt="n",
        results__a="a",
    )
    write(folder / ".results.1.tmp", part="p")
    (folder / ".b.json.12.tmp").write_text("p")
    write(folder / "checkpoints/7.orbax-checkpoint-tmp", state="s")
    write(folder / "checkpoints/8", state="s")  # no checksums
    own.push()
    assert set(objects()) == {"note.txt", "results/a"}
    close()


def test_a_start_makes_the_copy_equal_to_an_older_store():
    folder, own = opened_for_writing()
    save(folder, 1, "one")
    own.push()
    close()
    save(folder, 2, "two")  # never arrived
    write(folder, stray="x")
    said = []
    again = opened.writing("--workdir", RUN, said.append)
    assert again == folder
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"1"}
    assert (folder / "metrics.jsonl").read_text() == "1\n" and not (folder / "stray").exists()
    checksums.check(folder / "checkpoints/1")
    assert f"drops the local copy of checkpoint 2, which is not in {RUN}" in said
    # Only what differs is fetched: the log, not the step.
    assert any("fetches 1 files" in line for line in said)
    close()


def test_a_step_without_checksums_in_the_store_is_ignored_and_then_removed():
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/run/checkpoints/5/state/a", b"half")
    memory.pipe("/bucket/run/checkpoints/4/state/a", b"of an earlier version")
    memory.pipe("/bucket/run/checkpoints/4/commit_success.txt", b"")
    memory.pipe("/bucket/run/metrics.jsonl", b"")
    folder = opened.reading("--workdir", RUN, lambda line: None)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["4"]
    close()
    assert "checkpoints/5/state/a" in objects()  # a reader changes nothing
    opened_for_writing()
    assert "checkpoints/5/state/a" not in objects() and "checkpoints/4/state/a" in objects()
    close()


def test_files_go_only_after_a_command_that_ended_as_it_should():
    for ending, kept in ((True, False), (False, True)):
        folder, own = opened_for_writing()
        write(folder, old="o", new="n")
        own.push()
        (folder / "old").unlink()
        assert own.push() == 0 and "old" in objects()
        with contextlib.suppress(DamageError), opened.closing():
            if not ending:
                raise DamageError("x")
        assert ("old" in objects()) is kept


def test_a_removed_copy_removes_nothing_in_the_store():
    folder, own = opened_for_writing()
    save(folder, 1, "one")
    own.push()
    before = objects()
    drop(folder, 1)
    own.push()
    assert objects() == before
    (folder / "metrics.jsonl").unlink()
    (folder / "checkpoints").rmdir()
    folder.rmdir()
    close()
    assert objects() == before


def test_a_last_upload_that_fails_ends_the_command_in_one_line(fail_after, capsys):
    folder, _ = opened_for_writing()
    write(folder, a="a")
    fail_after(0)
    with pytest.raises(MachineError, match="no route to host; what is not in memory") as caught:
        close()
    assert caught.value.status == 69 and str(folder) in str(caught.value)
    folder, _ = opened_for_writing()
    write(folder, a="a")
    with pytest.raises(DamageError), opened.closing():
        raise DamageError("the first error")
    assert capsys.readouterr().err.startswith(f"error: cannot write to {RUN}: no route to host")


def test_training_goes_on_while_the_store_fails(fail_after, monkeypatch):
    monkeypatch.setattr(mirror, "INTERVAL", 0.01)
    said = []
    folder = opened.writing("--workdir", RUN, said.append)
    fail_after(0)
    save(folder, 1, "one")
    until = time.monotonic() + 5
    while len(said) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(said) == 2 and "no route to host; the work goes on" in said[1]
    fail_after(10**9)
    while len(said) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert said[2:] == [f"uploads to {RUN} go on"] and sealed(objects()) == {1}
    close()


def test_a_store_that_cannot_be_reached_at_the_start_is_refused(monkeypatch):
    def find(self, *args, **kwargs):
        raise Broken("no route to host")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "find", find)
    for use in (opened.reading, opened.writing):
        with pytest.raises(MachineError, match=f"cannot read {RUN}: no route to host"):
            use("--workdir", RUN)
    assert f"/bucket/run/{locks.NAME}" not in fsspec.filesystem("memory").store


@pytest.mark.parametrize("name", ["/bucket/run/../evil", "/bucket/run//a", "/bucket/run/a\\b"])
def test_names_that_would_leave_the_copy_are_refused(name):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/run/fine", b"x")
    memory.store[name] = memory.store["/bucket/run/fine"]
    with pytest.raises(InputError, match="name has no place in a folder"):
        opened.reading("--workdir", RUN)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("s3://key:secret@bucket/run", "--x: the address holds a user or a password"),
        ("memory://bucket/../run", "without empty parts and .."),
        ("simplecache::memory://bucket/run", "expected SCHEME://BUCKET/FOLDER"),
        ("memory://bucket/a?b", "'?' is not allowed"),
        ("nosuch://bucket/run", "unknown scheme nosuch://"),
    ],
)
def test_wrong_addresses_are_refused_in_one_line(address, text):
    with pytest.raises(InputError) as caught:
        store.Store("--x", address)
    assert text in str(caught.value) and "secret" not in str(caught.value)


def test_two_writers_are_kept_apart(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    monkeypatch.setattr(locks, "SILENCE", 0.3)
    _, own = opened_for_writing()
    second = place.Place.own(RUN, "run")
    with pytest.raises(BusyError, match=f"{RUN} is used by process {os.getpid()} on "):
        mirror.Mirror(own.store, second, lambda line: None).write()
    # Its owner is silent from here on, and another machine takes the lock.
    own._lease._ended.set()
    own._lease._thread.join()
    said = []
    other = mirror.Mirror(own.store, second, said.append)
    other.write()
    assert any("takes over the lock of process" in line for line in said)
    other.close(complete=True)
    close()


def test_a_killed_owner_on_this_machine_is_not_waited_for():
    """The record beside the local copy tells, which no living process uses."""
    earlier = dataclasses.replace(locks.Owner.here(), pid=2**22 + 1)
    spot = place.Place.own(RUN, "run")
    spot.owner.write_bytes(earlier.content())
    spot.release()
    fsspec.filesystem("memory").pipe(f"/bucket/run/{locks.NAME}", earlier.content())
    began = time.monotonic()
    opened_for_writing()
    assert time.monotonic() - began < 5
    close()
    assert f"/bucket/run/{locks.NAME}" not in fsspec.filesystem("memory").store


def test_a_run_whose_lock_was_taken_stops_and_uploads_nothing(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    folder, own = opened_for_writing()
    held = locks.Lock(folder / locks.NAME, "the run")
    thief = dataclasses.replace(locks.Owner.here(), host="elsewhere")
    fsspec.filesystem("memory").pipe(f"/bucket/run/{locks.NAME}", thief.content())
    own._lease._thread.join(5)
    with pytest.raises(BusyError, match=r"taken over by process .* on elsewhere"):
        held.check()  # as training does before it saves
    write(folder, a="a")
    with pytest.raises(BusyError, match="taken over"):
        close()
    assert "a" not in objects()
    held.release()


def test_processes_have_copies_of_their_own():
    folder, own = opened_for_writing()
    write(folder, a="a")
    own.push()
    other = opened.reading("--workdir", RUN)
    assert other != folder and (other / "a").read_text() == "a"
    close()


def test_what_a_reader_writes_below_its_copy_is_uploaded_alone():
    folder, _ = opened_for_writing()
    save(folder, 1, "one")
    close()
    run = opened.reading("--workdir", RUN)
    out = cli.output("out", run / "evaluations" / "test")
    write(out, results="r")
    write(run, other="o")
    close()
    assert objects()["evaluations/test/results"] == b"r" and "other" not in objects()


def test_corpora_are_fetched_once_and_read_from_the_copy(tmp_path, capsys):
    folder = tmp_path / "corpus"
    reports = "".join(f"Effusion {i}.\n" for i in range(9))
    write(folder, other="o", pairs_dot_csv=f"report\n{reports}")
    address = f"file://{folder}/pairs.csv"
    options = {"path": address, "image_column": "", "fractions": (0.5, 0.25, 0.25)}
    found = within.open_source("table", "train", options)
    local = within.open_source("table", "train", {**options, "path": str(folder / "pairs.csv")})
    assert [found[i].id for i in range(len(found))] == [local[i].id for i in range(len(local))]
    assert options["path"] == address
    assert capsys.readouterr().out.count("fetches 2 files") == 1  # the folder of the table
    with pytest.raises(InputError, match="there is nothing at this address"):
        within.open_source("table", "train", {**options, "path": f"file://{folder}/none.csv"})


def test_images_that_are_addresses_are_refused_in_one_line(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,report\ns3://b/0.png,Effusion.\n")
    with pytest.raises(InputError, match="it is an address; fetch the images") as caught:
        found = within.open_source("table", "train", {"path": str(tmp_path / "pairs.csv")})
        raise InputError(" ".join(str(one) for one in found.rejects))
    assert "\n" not in str(caught.value)


def test_processes_share_the_copy_of_a_corpus(tmp_path):
    folder = tmp_path / "corpus"
    write(folder, a="a")
    script = (
        "import sys; from mmrl.remote import opened\n"
        f"print(opened.fetched('x', 'file://{folder}')); sys.stdout.flush(); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert b"fetches" in other.stdout.readline()
        theirs = other.stdout.readline().decode().strip()
        assert str(opened.fetched("x", f"file://{folder}")) == theirs
        opened._FETCHED.clear()
        write(folder, a="changed")
        with pytest.raises(BusyError, match="changed while another process"):
            opened.fetched("x", f"file://{folder}")
        other.communicate(b"\n")


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(monkeypatch):
    fsspec.filesystem("memory").pipe("/bucket/run/a", b"12345678")
    monkeypatch.setattr(mirror.files, "free_bytes", lambda path: 4)
    with pytest.raises(MachineError, match=r"0.0 MB are free; .* set MMRL_CACHE"):
        opened.reading("--workdir", RUN)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("mmrl.runs", RUN), f"{RUN} is an address; expected a folder on this machine"),
        (("mmrl.evaluate", f"--workdir={RUN}"), "there is nothing at this address"),
        (("mmrl.prepare", "openi", "--input=x", f"--output={RUN}"), "copy the corpus to the store"),
        (
            (*commands.train_command(RUN), "--coordinator=h:1", "--num_processes=2",
             "--process_id=0"),
            "several processes need a folder that all of them see",
        ),
    ],
)  # fmt: skip
def test_commands_refuse_what_addresses_cannot_do(arguments, text, capsys):
    assert text in commands.refusal(capsys, *arguments)


def test_towers_start_from_folders():
    for config in (
        {"init": [], "towers": {"image": {"init": RUN}}},
        {"init": [{"from": RUN, "match": "."}], "towers": {}},
    ):
        with pytest.raises(InputError, match="towers start from a folder on this machine"):
            initial.entries(config)


@pytest.mark.exhaustive  # it trains twice
@pytest.mark.optax
def test_a_run_resumes_from_the_store_alone(tmp_path, capsys):
    """With another cache, as on another machine."""
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    address = f"file://{tmp_path}/bucket/run"

    def train(workdir, steps, cache):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MMRL_CACHE", str(tmp_path / cache))
            return commands.run_here(
                "mmrl.main",
                f"--config={file}:smoke",
                f"--workdir={workdir}",
                f"--config.total_steps={steps}",
                "--nosummary",
            )

    with stubs.registered():
        assert train(address, 2, "one") == 0 and train(address, 4, "two") == 0
    out = capsys.readouterr().out
    assert f"uploaded: {address}" in out and "resumed from step 2" in out
    run = tmp_path / "bucket" / "run"
    assert not (run / locks.NAME).exists() and (run / "config.json").exists()
    for step in (2, 4):
        checksums.check(run / "checkpoints" / str(step))

    steps = {json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert steps == {1, 2, 3, 4}


def test_files_of_a_checkpoint_have_the_names_that_training_gives_them():
    assert mirror._SEALS == (checksums.NAME, checkpoint._COMMITTED)
    assert mirror._WRITING == checkpoint._UNFINISHED


def test_what_both_sides_were_equal_in_is_written_when_it_changes(monkeypatch):
    folder, own = opened_for_writing()
    write(folder, note_dot_txt="n")
    assert own.push() == 1 and own.place.state.exists()
    written = []
    monkeypatch.setattr(mirror.files, "write_json", lambda *given: written.append(given))
    assert own.push() == 0 and not written
    write(folder, other_dot_txt="o")
    assert own.push() == 1 and written
    close()
