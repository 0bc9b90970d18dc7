"""The scenarios of chaos. Each disturbs runs and compares them with one left in peace."""

import contextlib
import csv
import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2

from benchmarks.chaos.runs import LONGEST, SETTINGS, Outcome, Run, Setting, differing
from mmrl.data.corpus import records
from mmrl.data.sources.phantom import Phantom
from mmrl.data.text.reports import compose

REFUSED = {"2", "4", "5", "73", "74"}  # statuses of a fault that is told in one line


@dataclasses.dataclass(frozen=True)
class Row:
    """What one disturbance came to.

    Attributes:
      scenario: its name. setting: of the run.
      moment: when, where and what.
      outcome: how the disturbed start ended.
      equal: what differs from the undisturbed run after the last start: "" if nothing does.
      held: whether everything was as it should be.
    """

    scenario: str
    setting: str
    moment: str
    outcome: str
    equal: str
    held: bool


@dataclasses.dataclass
class Place:
    """Where the runs are, and the undisturbed ones, which are made once.

    Attributes:
      folder: of all runs. seed: of all moments.
    """

    folder: Path
    seed: int
    _references: dict[str, tuple[Run, Outcome]] = dataclasses.field(default_factory=dict)

    def reference(self, run: Run, name: str) -> tuple[Run, Outcome]:
        """A run like `run` that nothing disturbed, and how it ended.

        Raises:
          SystemExit: it failed.
        """
        if name not in self._references:
            calm = dataclasses.replace(run, folder=self.folder / f"calm-{name}", wrapped=())
            calm.home = None
            shutil.rmtree(calm.folder, ignore_errors=True)
            ended = calm.to_end()  # compiles
            _expect(calm, ended)
            shutil.rmtree(calm.folder)
            ended = calm.to_end()
            _expect(calm, ended)
            self._references[name] = calm, ended
        return self._references[name]

    def run(self, name: str, setting: Setting, **options: object) -> Run:
        """A run in a new folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return Run(folder, setting, **options)  # type: ignore[arg-type]


def _expect(run: Run, ended: Outcome) -> None:
    if set(ended.statuses) != {0}:
        raise SystemExit(f"{run.folder} ended with {ended.status} undisturbed: {ended.lines}")


def _compared(run: Run, ended: Outcome, calm: Run) -> tuple[str, bool]:
    """What differs from the undisturbed run, and whether the last start ended well."""
    if set(ended.statuses) != {0}:
        return f"the last start ended with {ended.status}: {ended.lines[0]}", False
    different = differing(calm.identity(), run.identity())
    return ", ".join(different), not different


def _one_line(ended: Outcome) -> bool:
    """Whether an end was told in one line and without a traceback."""
    return not ended.tracebacks and all(line.startswith("error: ") for line in ended.lines)


def _told(ended: Outcome) -> str:
    line = ended.lines[0].removeprefix("error: ")
    traces = f" ({ended.tracebacks} tracebacks)" if ended.tracebacks else ""
    return f"{ended.status}{traces}: {line}" if line else ended.status


def kills(place: Place, key: str, count: int) -> Iterator[Row]:
    """SIGKILL to all processes at random moments between start and end, then the same command."""
    yield from _interrupted(place, key, count, "SIGKILL", signal.SIGKILL, {"SIGKILL"})


def stops(place: Place, key: str, count: int) -> Iterator[Row]:
    """SIGTERM and Ctrl-C at random moments, then the same command."""
    expected = {"75", "130", "0", "SIGTERM"}  # before Python has started, the signal itself ends it
    yield from _interrupted(place, key, count, "SIGTERM", signal.SIGTERM, expected)
    yield from _interrupted(place, key, count, "Ctrl-C", signal.SIGINT, expected | {"SIGINT"})


def _interrupted(
    place: Place, key: str, count: int, name: str, number: int, expected: set[str]
) -> Iterator[Row]:
    setting = SETTINGS[key]
    draws = random.Random(f"{place.seed} {name} {key}")
    calm, whole = place.reference(place.run("like", setting), key)
    made = 0
    while made < count:
        run = place.run(f"{name}-{key}-{made}", setting).start()
        moment = draws.uniform(0.0, whole.seconds)
        if not run.wait_until(moment):
            run.finish()
            continue  # it had ended before; another moment is drawn
        made += 1
        run.signal(number)
        ended = run.finish()
        saving = ", while saving" if run.is_saving() else ""
        when = f"{moment:.1f} s, {run.logged()} steps logged, saved {run.saved() or 'none'}{saving}"
        equal, same = _compared(run, run.to_end(), calm)
        statuses = set(ended.status.split(", "))
        held = same and statuses <= expected and not ended.tracebacks
        yield Row(name, setting.title, when, ended.status, equal, held)


def one_of_two(place: Place, key: str, count: int) -> Iterator[Row]:
    """One of two processes stands still for a minute (SIGSTOP), or is killed alone."""
    setting = SETTINGS[key]
    draws = random.Random(f"{place.seed} one of two")
    calm, whole = place.reference(place.run("like", setting), key)
    run = place.run(f"still-{key}", setting).start()
    _until(run, lambda: run.logged() >= 3)
    run.signal(signal.SIGSTOP, only=1)
    time.sleep(60)
    run.signal(signal.SIGCONT, only=1)
    ended = run.finish()
    equal, same = _compared(run, ended, calm)
    yield Row("one stands still", setting.title, "60 s at step 3", ended.status, equal, same)
    for number in range(count):
        only = draws.randrange(setting.processes)
        run = place.run(f"alone-{key}-{number}", setting).start()
        moment = draws.uniform(0.3, 0.9) * whole.seconds
        run.wait_until(moment)
        run.signal(signal.SIGKILL, only=only)
        ended = run.finish()
        when = f"process {only} at {moment:.1f} s, {run.logged()} steps logged"
        equal, same = _compared(run, run.to_end(), calm)
        yield Row("one is killed", setting.title, when, ended.status, equal, same)


def two_starts(place: Place, key: str, count: int) -> Iterator[Row]:
    """The command is started again while it runs."""
    setting = SETTINGS[key]
    draws = random.Random(f"{place.seed} two starts")
    calm, whole = place.reference(place.run("like", setting), key)
    for number in range(count):
        run = place.run(f"twice-{key}-{number}", setting).start()
        moment = draws.uniform(0.3, 0.6) * whole.seconds
        run.wait_until(moment)
        home = place.folder / f"twice-{key}-{number}-second"
        second = dataclasses.replace(run, processes=[], home=home).start().finish()
        equal, same = _compared(run, run.finish(), calm)
        held = same and second.status == "5" and _one_line(second)
        yield Row("started twice", setting.title, f"{moment:.1f} s", _told(second), equal, held)


def clocks(place: Place, key: str, count: int) -> Iterator[Row]:
    """The time of day jumps forth and back by a day, also across a kill."""
    setting = SETTINGS[key]
    draws = random.Random(f"{place.seed} clocks")
    calm, whole = place.reference(place.run("like", setting), key)
    jump = ("clock", "86400")
    for number in range(count):
        run = place.run(f"clock-{key}-{number}", setting, wrapped=jump).start()
        moment = draws.uniform(0.4, 0.9) * whole.seconds
        run.wait_until(moment)
        ended = run.kill()
        last = run.start().finish()
        equal, same = _compared(run, last, calm)
        when = f"by a day, and SIGKILL at {moment:.1f} s"
        yield Row("clock jumps", setting.title, when, f"{ended.status}, {last.status}", equal, same)


def damage(place: Place, key: str, count: int) -> Iterator[Row]:
    """A file of the newest checkpoint is damaged; --fall-back then uses the one before it."""
    setting = SETTINGS[key]
    draws = random.Random(f"{place.seed} damage")
    calm, _ = place.reference(place.run("like", setting), key)
    source = place.run(f"damage-{key}", setting).start()
    _until(source, lambda: len(source.saved()) >= 2 and source.logged() >= 7)
    source.kill()
    kinds = ("64 bytes zeroed", "cut to half", "removed")
    for number in range(count):
        run = place.run(f"damage-{key}-{number}", setting)
        shutil.copytree(source.folder, run.folder)
        newest = run.folder / "checkpoints" / str(run.saved()[-1])
        kind = kinds[min(number % 4, 2)] if number % 4 else kinds[0]
        files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
        large = [path for path in files if path.stat().st_size > (64 if kind == kinds[0] else 0)]
        path = draws.choice(large)
        _harm(path, kind, draws)
        refused = run.to_end()
        ended = run.to_end("--fall-back")
        equal, same = _compared(run, ended, calm)
        held = same and refused.status == "4" and _one_line(refused)
        what = f"{path.relative_to(newest.parent)}: {kind}"
        yield Row("newest checkpoint damaged", setting.title, what, _told(refused), equal, held)


def _harm(path: Path, kind: str, draws: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "removed":
        path.unlink()
    elif kind == "cut to half":
        path.write_bytes(data[: len(data) // 2])
    else:
        places = [at for at in range(len(data) - 64) if any(data[at : at + 64])]
        at = draws.choice(places)
        data[at : at + 64] = bytes(64)
        path.write_bytes(data)


def disk_full(place: Place, key: str, count: int) -> Iterator[Row]:
    """Something else fills the disk of the run directory at random moments, and gives way later."""
    setting = SETTINGS[key]
    draws = random.Random(f"{place.seed} disk")
    calm, whole = place.reference(place.run("like", setting), key)
    for number in range(count):
        disk = place.folder / f"disk-{key}-{number}"
        disk.mkdir(parents=True, exist_ok=True)
        if not _mount(disk, "size=64m"):
            yield Row("disk full", setting.title, "not run: no permission to mount", "", "", True)
            return
        try:
            run = place.run(f"disk-{key}-{number}/run", setting, home=place.folder).start()
            moment = draws.uniform(0.4, 0.95) * whole.seconds
            run.wait_until(moment)
            _fill(disk / "filler")
            ended = run.finish()
            when = f"{moment:.1f} s, {run.logged()} steps logged, saved {run.saved() or 'none'}"
            (disk / "filler").unlink()
            equal, same = _compared(run, run.to_end(), calm)
            told = ended.status == "0" or (ended.status == "74" and _one_line(ended))
            held = same and told
            yield Row("disk full", setting.title, when, _told(ended), equal, held)
        finally:
            subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def _fill(path: Path) -> None:
    """Writes a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def files(place: Place, key: str, count: int) -> Iterator[Row]:
    """Images of a table open slowly, or vanish while the run reads them and come back."""
    setting = SETTINGS[key]
    table = _table(place.folder / "table")
    options = {
        "preset": "table,smoke",
        "changes": (f"data.path={table}", "data.cache_images=False", "data.verify=exists"),
    }
    like = place.run("like", setting, **options)
    calm, _ = place.reference(like, f"table-{key}")
    run = place.run(f"slow-{key}", setting, **options, wrapped=("slow", str(table.parent), "0.3"))
    ended = run.start().finish()
    equal, same = _compared(run, ended, calm)
    yield Row("slow files", setting.title, "a tenth opens 0.3 s late", ended.status, equal, same)
    images, gone = table.parent / "images", table.parent / "gone"
    for number in range(count):
        run = place.run(f"vanish-{key}-{number}", setting, **options).start()
        _until(run, lambda: run.logged() >= 2 + 3 * number)  # noqa: B023
        images.rename(gone)
        ended = run.finish()
        when = f"at step {run.logged()}, saved {run.saved() or 'none'}"
        gone.rename(images)
        equal, same = _compared(run, run.to_end(), calm)
        held = same and ended.status in REFUSED and _one_line(ended)
        yield Row("files vanish", setting.title, when, _told(ended), equal, held)


def shards(place: Place, key: str, count: int) -> Iterator[Row]:
    """A shard or the index of a prepared corpus is cut or altered."""
    setting = SETTINGS[key]
    draws = random.Random(f"{place.seed} shards")
    corpus = place.folder / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    _prepare(corpus)
    waived = "data.waive_leaks=similar_image 1.0 drawn images look alike"
    options = {"preset": "prepared,smoke", "changes": (f"data.path={corpus}", waived)}
    calm, _ = place.reference(place.run("like", setting, **options), f"prepared-{key}")
    parts = sorted(
        path for path in corpus.rglob("*") if path.is_file() and path.stat().st_size > 64
    )
    kinds = ("cut to half", "64 bytes zeroed", "removed")
    for number in range(count):
        path, kind = parts[number % len(parts)], kinds[number % len(kinds)]
        kept = path.read_bytes()
        _harm(path, kind, draws)
        run = place.run(f"shards-{key}-{number}", setting, **options)
        ended = run.to_end()
        unharmed = ended.status == "0" and not differing(calm.identity(), run.identity())
        path.write_bytes(kept)
        equal, same = _compared(run, run.to_end(), calm)
        refused = ended.status in REFUSED and _one_line(ended)
        what = f"{path.relative_to(corpus)}: {kind}"
        outcome = "0: what is damaged is not read" if unharmed else _told(ended)
        held = same and (refused or unharmed)
        yield Row("prepared corpus damaged", setting.title, what, outcome, equal, held)


def vanishing_folder(place: Place, key: str, count: int) -> Iterator[Row]:
    """The run directory is renamed while the run works in it, and comes back."""
    setting = SETTINGS[key]
    calm, _ = place.reference(place.run("like", setting), key)
    for number in range(count):
        run = place.run(f"folder-{key}-{number}", setting).start()
        _until(run, lambda: run.logged() >= 3 + 2 * number)  # noqa: B023
        when = f"renamed at step {run.logged()}"
        away = run.folder.with_name(f"{run.folder.name}-away")
        shutil.rmtree(away, ignore_errors=True)
        run.folder.rename(away)
        ended = run.finish()
        shutil.rmtree(run.folder, ignore_errors=True)
        away.rename(run.folder)
        equal, same = _compared(run, run.to_end(), calm)
        held = same and ended.status in REFUSED and _one_line(ended)
        yield Row("run directory vanishes", setting.title, when, _told(ended), equal, held)


def _prepare(output: Path) -> None:
    command = [sys.executable, "-m", "mmrl.prepare", "phantom", "--option=length=400"]
    done = subprocess.run(
        [*command, "--size=64", "--shard_mib=1", f"--output={output}"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-500:]}")


def _table(folder: Path) -> Path:
    """Writes a table of drawn radiographs with their reports; returns its path."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    source = Phantom(split="train", length=160, fractions=(1.0, 0.0, 0.0), render_size=64)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "report", "patient_id"])
        for number, record in enumerate(records(source)):
            name = f"images/{number}.png"
            cv2.imwrite(str(folder / name), record.images[0].load())
            report = compose(record.sections, ("findings", "impression"))
            writer.writerow([name, report, record.patient_id])
    return folder / "pairs.csv"


def _until(run: Run, reached: Callable[[], bool]) -> None:
    """Waits until a run has come so far, or has ended."""
    while run.wait_until(time.monotonic() - run.began + 0.02) and not reached():
        if time.monotonic() - run.began > LONGEST:
            with contextlib.suppress(OSError):
                run.kill()
            raise SystemExit(f"{run.folder} did not come so far in {LONGEST:.0f} s")
