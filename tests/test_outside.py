"""Faults outside mmrl: a disk, a device, a terminal, Ctrl-C. One line and an exit status each."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest

from mmrl import cli, interrupts
from mmrl.devices.rollcall import StartError
from mmrl.types import (
    BusyError,
    DamageError,
    InputError,
    MachineError,
    NonFiniteError,
    PreemptedError,
)
from tests.conftest import ROOT


def system(number, path="/data/a.npz"):
    return OSError(number, os.strerror(number), path)


class JaxRuntimeError(RuntimeError):
    """Named as the error of jax."""


ENDINGS = {
    "wrong input": (InputError("a is\nb"), 2, "error: a is b"),
    "not finite": (NonFiniteError("step 3"), 3, "step 3"),
    "damaged": (DamageError("a.npz differs"), 4, "differs"),
    "busy": (BusyError("runs/a is in use"), 5, "in use"),
    "processes missing": (StartError("missing 1"), 69, "missing 1"),
    "no memory": (MemoryError("Unable to allocate 9 GiB"), 69, "out of memory: Unable to allocate"),
    "no memory on the device": (
        JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1234 bytes.\n"),
        69,
        "out of memory on a device (1234 bytes asked); lower config.batch_size",
    ),
    "no memory on the GPU": (
        JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2.5GiB."),
        69,
        "(2.5GiB asked)",
    ),
    "of a kind": (MachineError("no", 77), 77, "error: no"),
    "read-only": (system(errno.EROFS), 73, "Read-only file system"),
    "file for a folder": (system(errno.ENOTDIR), 73, "/data/a.npz"),
    "folder for a file": (system(errno.EISDIR), 73, "Is a directory"),
    "name too long": (system(errno.ENAMETOOLONG), 73, "too long"),
    "disk full": (system(errno.ENOSPC), 74, "No space left"),
    "quota": (system(errno.EDQUOT), 74, "quota"),
    "file too large": (system(errno.EFBIG), 74, "too large"),
    "device failed": (system(errno.EIO), 74, "put/output error"),
    "network folder gone": (system(errno.ESTALE), 74, "Stale"),
    "file vanished": (system(errno.ENOENT), 74, "/data/a.npz"),
    "too many files": (system(errno.EMFILE), 74, "Too many open files"),
    "no permission": (system(errno.EACCES), 77, "Permission denied"),
    "not permitted": (system(errno.EPERM), 77, "not permitted"),
    "name of bytes": (system(errno.EACCES, b"/data/\xff.npz"), 77, "/data/\udcff.npz"),
    "stopped": (PreemptedError("saved step 3"), 75, "saved step 3"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_how_an_error_ends_a_command(name):
    error, status, words = ENDINGS[name]
    found, line = cli.ending(error)
    assert found == status and words in line and "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        KeyError("name"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        OSError("cannot identify image"),
        FileNotFoundError(errno.ENOENT, "no"),
    ],
)
def test_bugs_keep_their_trace(error):
    assert cli.ending(error) == (0, "")


def test_the_table_in_the_docs_has_every_status():
    table = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = set(map(int, re.findall(r"^\| (\d+) \|", table, re.M)))
    assert listed == {status for _, status, _ in ENDINGS.values()} | {0, 130, 141}


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("below", "words"),
    [
        ("file", "/file' is a file; expected a folder"),
        ("file/run", "/file' is a file; expected a folder"),
        ("file/run/deeper", "/file' is a file; expected a folder"),
        ("lost/run", "/lost' is a broken link"),
        ("n" * 300, "File name too long"),
    ],
)
def test_outputs_that_cannot_be_created(below, words, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MachineError, match=re.escape(words)) as error:
        cli.output("out", tmp_path / below)
    assert error.value.status == 73 and str(error.value).startswith("--out=")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lost"]


def test_outputs_that_can(tmp_path):
    assert cli.output("out", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    assert cli.output("json", tmp_path / "a.json", is_file=True) == tmp_path / "a.json"
    with pytest.raises(MachineError, match="is a folder; expected a file"):
        cli.output("json", tmp_path, is_file=True)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(MachineError, match="no permission to write to") as error:
        cli.output("out", tmp_path / "a")
    assert error.value.status == 77
    monkeypatch.undo()

    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda path: ReadOnly)
    with pytest.raises(MachineError, match="is on a read-only file system") as error:
        cli.output("out", tmp_path / "a")
    assert error.value.status == 73


def test_names_that_are_no_text():
    with pytest.raises(InputError, match=r"--workdir='runs/\\udcff': the name holds bytes"):
        cli.folder("workdir", "runs/\udcff")


# --- whole processes ------------------------------------------------------------------------------

COMMAND = """
import sys
from mmrl import cli, interrupts
interrupts.arm()

def main():
{body}

sys.argv = ["command"]
cli.run(main, cli.new_flags(), "")
"""


def command(body):
    """A command that does what the lines say."""
    return ["-c", COMMAND.format(body="".join(f"    {line}\n" for line in body.splitlines()))]


def start(arguments, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    # A shell may have started the tests without Ctrl-C, and what is ignored is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **options)
    finally:
        signal.signal(signal.SIGINT, before)


def finished(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_full_disk_below_stdout():
    with open("/dev/full", "wb") as full:
        status, _, err = finished(start(["-m", "mmrl.options", "--help"], stdout=full))
    assert (status, err.count(b"\n")) == (74, 1) and b"No space left on device" in err


def test_an_ascii_terminal(tmp_path):
    ascii_only = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    folder = tmp_path / "Übung"
    folder.mkdir()
    for arguments in ((f"{folder}/a", f"{folder}/a"), ("--help",)):
        done = finished(start(["-m", "mmrl.compare", *arguments], env=ascii_only))
        assert done[0] == (0 if arguments == ("--help",) else 2)
        assert b"Traceback" not in done[2] and done[2].count(b"\n") == (done[0] == 2)
    body = r"""from rich.console import Console
print('Herz 5 \xb0')
Console().print('gr\xf6\xdfer \u2501')"""
    assert finished(start(command(body), env=ascii_only)) == (
        0,
        b"Herz 5 \\xb0\ngr\\xf6\\xdfer \\u2501\n",
        b"",
    )


@pytest.mark.parametrize(
    "name",  # one that jax knows, and one it does not
    ["rocm", pytest.param("nosuch", marks=pytest.mark.exhaustive)],
)
def test_a_device_that_is_not_there(name):
    missing = {**os.environ, "JAX_PLATFORMS": name}
    status, _, err = finished(start(command("import jax\njax.devices()"), env=missing))
    assert status == 69 and err.count(b"\n") == 1
    assert err.startswith(f"error: JAX_PLATFORMS={name}: there is no such device".encode())
    assert b"there is: cpu" in err


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_streams_that_are_closed(stream):
    body = "import os\nraise cli.InputError('wrong')"
    closed = {"stdout": 1, "stderr": 2}[stream]
    arguments = command(body)
    arguments[1] = f"import os; os.close({closed})\n{arguments[1]}"
    status, out, err = finished(start(arguments))
    assert status == 2 and out == b""
    assert err == (b"error: wrong\n" if stream == "stdout" else b"")


def test_progress_that_nothing_reads():
    reads, writes = os.pipe()
    os.close(reads)
    body = """from rich.console import Console
from rich.progress import track
for _ in track(range(3), console=Console(force_terminal=True)):
    print("step")"""
    try:
        assert finished(start(command(body), stdout=writes))[::2] == (141, b"")
    finally:
        os.close(writes)


STOPPED = (130, b"stopped by Ctrl-C\n")


@pytest.mark.parametrize("module", ["absl.flags", "ml_collections.config_dict.config_dict"])
def test_ctrl_c_while_a_command_is_imported(module):
    process = start(["-X", "importtime", "-m", "mmrl.options"], stdout=subprocess.DEVNULL)
    for line in process.stderr:
        if line.split()[-1] == module.encode():
            break
    process.send_signal(signal.SIGINT)
    status, _, err = finished(process)
    rest = [line for line in err.splitlines() if not line.startswith(b"import time:")]
    assert (status, b"\n".join(rest)) == (130, b"stopped by Ctrl-C")


BODIES = {
    "at work": "time.sleep(60)",
    "in an error of a library": """try:
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("numpy.core failed to import")""",
    "in a destructor": """class Late:
    def __del__(self):
        time.sleep(60)
late = Late()
del late
time.sleep(60)""",
    "while threads work": """import threading
threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
time.sleep(60)""",
}


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", BODIES)
def test_ctrl_c_at_work(name):
    process = start(command(f"import time\nprint('ready', flush=True)\n{BODIES[name]}"))
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert finished(process)[::2] == STOPPED


def test_a_second_ctrl_c_ends_what_does_not_end():
    body = """import threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print('ready', flush=True)
time.sleep(60)"""
    process = start(command(body))
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == STOPPED[1]
    process.send_signal(signal.SIGINT)
    assert finished(process)[::2] == STOPPED


@pytest.mark.parametrize(
    ("started", "program", "handler"),
    [
        (["python", "-m", "mmrl.main"], "-m", interrupts.end_at_once),
        (["python", "-c", "...", "--multiprocessing-fork"], "/mmrl/main.py", signal.SIG_IGN),
        (
            ["python", "-c", "...", "--multiprocessing-fork"],
            "/own/train.py",
            signal.default_int_handler,
        ),
        (["python", "train.py"], "train.py", signal.default_int_handler),
    ],
    ids=["command", "its worker", "worker of another program", "another program"],
)
def test_who_changes_what_ctrl_c_does(started, program, handler, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", [program, "--a=b"])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts.arm_command("/mmrl")
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.arm()
        with interrupts.Interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
