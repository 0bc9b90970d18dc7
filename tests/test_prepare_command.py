"""`python -m mmrl.prepare`: what it takes, what it says, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmrl import cli, durations, prepare
from mmrl.data.overlap.leaks import LeakError
from mmrl.data.sources.prepared import Prepared
from mmrl.preparation import catalogue, job
from mmrl.preparation.progress import Meter
from tests.conftest import ROOT


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A table of 20 rows, one of whose images is missing."""
    (tmp_path / "in").mkdir()
    lines = ["image,report,patient,view"]
    for number in range(20):
        if number != 7:
            pixels = np.full((40, 30), 10 * number, np.uint8)
            cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), pixels)
        lines.append(f"{number}.png,Report {number}.,{number // 2},PA")
    (tmp_path / "in" / "pairs.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "in" / "pairs.csv"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of the command, in this process; flags return to their defaults after it."""
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        cli.run(prepare.main, prepare._FLAGS, prepare.__doc__, positional=True)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        prepare._FLAGS.unparse_flags()
        for name in prepare._FLAGS:
            prepare._FLAGS[name].unparse()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def test_what_is_said(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["table", f"--input={pairs}", f"--output={tmp_path / 'out'}", "--workers=0"]
    given += ["--option=patient_column=patient", "--size=32", "--max-reject-fraction=0.05"]
    assert run(monkeypatch, *given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["table", "licence: not stated (19)", "access: open"]
    counts = [re.fullmatch(r"(\w+): (\d+) records, (\d+) images", line) for line in lines[3:6]]
    assert [found[1] for found in counts if found] == ["train", "val", "test"]
    assert sum(int(found[2]) for found in counts if found) == 19
    assert lines[6:8] == [
        "text: report 19",
        "refused before images are read: 1 missing_image",
    ]
    assert re.fullmatch(r"about 0 MiB to write, [\d.,]+ GiB free", lines[8])
    assert re.fullmatch(
        r"19 records, 19 images, [\d,]+ bytes; [\d.]+ s, [\d,]+ records/s", lines[9]
    )
    assert lines[10:] == ["refused in all: 1 missing_image"]
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert json.loads(manifest)["options"] == {"patient_column": "patient", "verify": "header"}
    (reject,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["detail"] == "row 8: no file '7.png'"
    assert run(monkeypatch, *given) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("is complete: 19 records, every file of its stated size")
    )
    total = sum(
        len(Prepared(split=s, path=str(tmp_path / "out"))) for s in ("train", "val", "test")
    )
    assert total == 19


def test_too_many_missing_images(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["table", f"--input={pairs}", f"--output={tmp_path / 'out'}", "--workers=0"]
    assert run(monkeypatch, *given) == 2
    assert capsys.readouterr().err == (
        "error: 1 of 20 records of table, or images of them, rejected (5.0 %): 1 missing_image"
        " (table:8: row 8: no file '7.png'); --max-reject-fraction=0.01 allows 0;"
        " rejects.jsonl lists them: correct them, or allow more\n"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejects.jsonl"]
    assert run(monkeypatch, *given, "--allow-missing-images") == 0


def test_a_table_without_a_readable_row_lists_them(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs.write_text("image,report,patient\n" + "0.png,Clear.,nan\n" * 3)
    given = ["table", f"--input={pairs}", f"--output={tmp_path / 'out'}", "--workers=0"]
    assert run(monkeypatch, *given, "--option=patient_column=patient") == 2
    assert "no readable row; row 1: blank 'patient'" in capsys.readouterr().err
    listed = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["detail"] for line in listed] == [
        f"row {number}: blank 'patient': 'nan'" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"missing SOURCE, the first argument; choices: .*openi, .*, audit"),
        (["tabel"], r"unknown source 'tabel' \(did you mean 'table'\?\); choices: "),
        (["phantom", "extra"], "unexpected argument 'extra'; options are written --name=value"),
        (["phantom"], "missing --output=...; see --help"),
        (["table", "--output=x"], "missing --input=...; see --help"),
        (["phantom", "--input=x"], "--input=x: source phantom reads no files"),
        (["table", "--input=x", "--option=path=y"], "--option=path=... and --input; expected one"),
        (["phantom", "--output=x", "--size=3"], "--size=3; expected 16 to 8192 pixels"),
        (["phantom", "--format=gif"], "--format=gif; choices: jpeg, png"),
        (["phantom", "--quality=0"], "--quality=0; expected 1 to 100"),
        (["phantom", "--verify=all"], "unknown value of --verify 'all'; choices: decode, header"),
        (["phantom", "--option=size=3"], "unknown option of source phantom 'size'"),
        (["phantom", "--lengths=3"], "--lengths is for audit, not for 'phantom'"),
        (["audit"], "missing the folders to audit, after 'audit'"),
        (["audit", "x", "--size=64"], "--size is for preparing a source, not for 'audit'"),
    ],
)
def test_wrong_commands_end_in_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {message}", line)


def test_audit_is_handed_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[object] = []

    def audit(folders: list[str], **named: object) -> None:
        taken.extend([folders, named])
        raise LeakError("seen before")

    fake = types.SimpleNamespace(audit=audit)
    monkeypatch.setitem(sys.modules, "mmrl.preparation.audit", fake)
    given = ["audit", "a", "b", f"--out={tmp_path}", "--lengths=8,16", "--batch-sizes=4"]
    given.append("--waive=report 0.5 templates")
    assert run(monkeypatch, *given, "--against=c,d") == 2
    assert taken == [
        ["a", "b"],
        {
            "out": str(tmp_path),
            "lengths": (8, 16),
            "batch_sizes": (4,),
            "against": ["c", "d"],
            "waivers": {"report": (0.5, "templates")},
        },
    ]
    assert run(monkeypatch, "audit", "a", f"--out={tmp_path}", "--lengths=few") == 2
    assert "--lengths=few; expected whole numbers above 0" in capsys.readouterr().err
    assert run(monkeypatch, "audit", "a", "--waive=report") == 2
    assert "--waive holds 'report'; expected KIND SHARE REASON" in capsys.readouterr().err


def test_a_log_has_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Meter("preparing", 1000, start=100, clock=lambda: now[0]) as meter:
        for second in range(1, 22):
            now[0] = float(second)
            meter.advance(100 + 20 * second, second * 2**20)
    assert capsys.readouterr().out.splitlines() == [
        "300/1,000  preparing: 20 records/s, 10 MiB, left 0:35",
        "500/1,000  preparing: 20 records/s, 20 MiB, left 0:25",
    ]
    assert [durations.clock(s) for s in (59.6, 3600.0, 7325.0)] == ["1:00", "1:00:00", "2:02:05"]


def test_a_full_disk_ends_in_one_line(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, "_run", no_space)
    given = ["table", f"--input={pairs}", f"--output={tmp_path / 'out'}", "--workers=0"]
    assert run(monkeypatch, *given, "--max-reject-fraction=1") == 74
    err, output = capsys.readouterr().err, tmp_path / "out"
    told = f"error: cannot write to --output={output}: No space left on device ('{output}', "
    assert err.startswith(told) and err.count("\n") == 1
    assert err.endswith(" MB free); free some space and start the same command again: it resumes\n")


def test_preparing_starts_without_jax() -> None:
    """Every worker process imports the command; jax and flax would double what that takes."""
    code = "import sys, mmrl.prepare; print({'jax', 'flax', 'grain'} & set(sys.modules))"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout == "set()\n"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_told_to_stop_it_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmrl.prepare", "phantom", f"--output={tmp_path / 'out'}"]
    command += ["--option=length=20000", "--option=render_size=32", "--workers=0"]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ, text=True
    )
    until = time.monotonic() + 120
    while not (tmp_path / "out" / ".work" / "plan.json").exists() and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 75
    assert error == "stopped by SIGTERM; start the same command again to continue\n"


def test_the_catalogue_is_that_of_the_docs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "sources") == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 100
    named = [line.strip() for line in shown if re.fullmatch(r"  \w+", line)]
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = "\n".join(catalogue.markdown())
    assert table in page
    assert named == re.findall(r"^\| `(\w+)`", table, re.MULTILINE) and "openi" in named
