"""Checks whether this machine can run mmrl, and says what to do where it cannot.

Looks at settings, versions, devices, memory, disks and decoders of images, and trains two steps of
a tiny model. Each line is ok, a note that needs no action, or a problem with its remedy. The exit
status is 69 if there is a problem.

    python -m mmrl.doctor
    python -m mmrl.doctor --norun --json
"""

import dataclasses
import functools
import importlib.metadata
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mmrl import cli, extras, locks
from mmrl.types import MachineError, first_line
from mmrl.version import __version__

if TYPE_CHECKING:  # a broken package must not end the command before it is found
    import numpy as np
    from packaging.requirements import Requirement

_FLAGS = cli.new_flags()
_RUN = flags.DEFINE_bool("run", True, "Trains two steps of a tiny model.", flag_values=_FLAGS)
_JSON = flags.DEFINE_bool("json", False, "Prints a JSON list instead.", flag_values=_FLAGS)

OK, NOTE, PROBLEM = "ok", "note", "problem"
_PROBLEMS = 69  # EX_UNAVAILABLE of sysexits.h
_GIB = 2**30
_LEAST_DISK, _LEAST_MEMORY, _LEAST_FILES = 2 * _GIB, 4 * _GIB, 1024
_INSTALL_AGAIN = "Install the wheel, or requirements.txt of a clone, again in a new environment."
_SECONDS = 600  # for two steps
# What hides a device, or changes what jax does.
_SETTINGS = ("JAX_", "XLA_", "MMRL_", "CUDA_VISIBLE", "OMP_NUM", "TPU_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      about: what was checked. status: ok, note or problem.
      found: in words. remedy: what to do about it; "" if nothing.
    """

    about: str
    status: str
    found: str
    remedy: str = ""


def main() -> None:
    """Prints all findings.

    Raises:
      MachineError: there is a problem.
    """
    # Settings first: packages set some when they are imported.
    checks = [_settings, _versions, _extras, _devices, _memory, _disks, _limits, _decoders]
    findings = []
    for check in checks + ([_two_steps] if _RUN.value else []):
        for one in _guarded(check):
            findings.append(one)
            if not _JSON.value:
                print(_line(one), flush=True)
    if _JSON.value:
        print(json.dumps([dataclasses.asdict(one) for one in findings], indent=2))
    problems = [one.about for one in findings if one.status == PROBLEM]
    if problems:
        named = ", ".join(problems)
        raise MachineError(f"problems in {len(problems)} of {len(findings)}: {named}", _PROBLEMS)
    if not _JSON.value:
        print("no problems found")


def _line(one: Finding) -> str:
    remedy = f"\n         {one.remedy}" if one.remedy else ""
    return f"{one.status:<9}{one.about}: {one.found}{remedy}"


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; what it raises is a problem, too."""
    try:
        yield from check()
    except Exception as error:  # broken packages raise anything
        about = check.__name__.strip("_").replace("_", " ")
        reason = f"{type(error).__name__}: {first_line(error)}"
        yield Finding(about, PROBLEM, f"the check failed: {reason}", _INSTALL_AGAIN)


def _versions() -> Iterator[Finding]:
    yield Finding("mmrl", OK, f"{__version__} on Python {platform.python_version()}")
    wrong, found = [], {}
    for needed, version in _needed(""):
        if version is None:
            wrong.append(f"{needed} is missing")
        elif not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} {version} is installed, {needed.specifier} is needed")
        else:
            found[needed.name] = version
    if wrong:
        yield Finding("packages", PROBLEM, "; ".join(wrong), _INSTALL_AGAIN)
    else:
        named = ", ".join(f"{name} {found[name]}" for name in ("jax", "flax", "orbax-checkpoint"))
        yield Finding("packages", OK, f"all {len(found)} are there: {named}, ...")


def _extras() -> Iterator[Finding]:
    # An extra of a package, as in jax[cuda13], cannot be told from the package: see the devices.
    names = [name for name in _stated()[1] if any(not needed.extras for needed, _ in _needed(name))]
    complete = [name for name in names if all(version for _, version in _needed(name))]
    others = ", ".join(name for name in names if name not in complete) or "none"
    found = f"installed: {', '.join(complete) or 'none'}; others: {others}"
    yield Finding("extras", OK, f"{found} (docs/dependencies.md lists their packages)")


@functools.cache
def _stated() -> tuple[list["Requirement"], list[str]]:
    """What the metadata of mmrl require, extras included, and the names of the extras.

    Of a clone that is not installed, they stand in pyproject.toml.
    """
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("mmrl") or []
        extras = importlib.metadata.metadata("mmrl").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        file = Path(__file__).parents[1] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = list(project["optional-dependencies"])
        lines = [*project["dependencies"]]
        for extra, needed in project["optional-dependencies"].items():
            lines += [f'{one.split(";")[0]}; extra == "{extra}"' for one in needed]
    return [Requirement(line) for line in lines], extras


def _needed(extra: str) -> Iterator[tuple["Requirement", str | None]]:
    """What mmrl requires, or an extra of it adds, with the installed version."""
    for one in _stated()[0]:
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        chosen = one.marker is not None and one.marker.evaluate({"extra": extra})
        if one.name == "mmrl" or not (chosen and not always if extra else always):
            continue
        try:
            yield one, importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            yield one, None


def _devices() -> Iterator[Finding]:
    import jax

    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    yield Finding("devices", OK, f"{len(devices)} {devices[0].platform}: {kinds}")
    for device in devices if devices[0].platform != "cpu" else []:
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit:
            yield Finding(f"memory of {device}", OK, f"{limit / _GIB:.1f} GiB")
    if devices[0].platform == "cpu":
        if seen := _nvidia():
            yield Finding(
                "GPU",
                PROBLEM,
                f"the driver shows {seen}, and jax does not use it",
                f"Install the CUDA build: {extras.command('cuda')}. If it is installed, unset "
                "JAX_PLATFORMS and CUDA_VISIBLE_DEVICES, and update the driver.",
            )
        if Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists():
            yield Finding(
                "TPU",
                PROBLEM,
                "this machine has one, and jax does not use it",
                f"Install libtpu: {extras.command('tpu')}. Only one process may use it.",
            )


def _nvidia() -> str:
    """The names of the GPUs that the driver shows; "" without any."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "/dev/nvidia0" if Path("/dev/nvidia0").exists() else ""
    listed = [command, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(listed, capture_output=True, text=True, timeout=60, check=False)
    return ", ".join(done.stdout.split("\n")).strip(", ") if done.returncode == 0 else ""


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = _allowed_memory()
    usable = min(total, allowed or total)
    limited = f", of {total / _GIB:.1f} of the machine" if usable < total else ""
    found = f"{usable / _GIB:.1f} GiB{limited}; {len(os.sched_getaffinity(0))} cores"
    low = "Give the container or the job at least 4 GiB." if usable < _LEAST_MEMORY else ""
    yield Finding("memory and cores", PROBLEM if low else OK, found, low)


def _allowed_memory() -> int | None:
    """Bytes that the control group of this process allows it; None without a limit."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None


def _disks() -> Iterator[Finding]:
    for about, folder in {
        "current folder": Path.cwd(),
        "temporary folder": Path(tempfile.gettempdir()),
        "cache": Path.home() / ".cache",
    }.items():
        while not folder.exists():
            folder = folder.parent
        free, writable = shutil.disk_usage(folder).free, os.access(folder, os.W_OK | os.X_OK)
        remedy = "" if free >= _LEAST_DISK else "Free some: checkpoints and programs need space."
        remedy = remedy if writable else "Choose a folder that you may write to."
        found = f"{folder}, {free / _GIB:.1f} GiB free{'' if writable else ', not writable'}"
        yield Finding(about, PROBLEM if remedy else OK, found, remedy)
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < 256 * 2**20:
        size = shutil.disk_usage(shared).total / 2**20
        yield Finding(
            "shared memory",
            NOTE,
            f"{size:.0f} MiB in {shared}",
            "Data workers (data.num_workers) need more: docker run --shm-size=2g.",
        )
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".mmrl-doctor-") as made:
        lock = locks.Lock(Path(made) / locks.NAME, "the check", lambda line: None)
        lock.release()
    yield Finding("locks", OK, "the current folder can hold a run")


def _limits() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < _LEAST_FILES
    remedy = "Raise it before you train: ulimit -n 4096." if few else ""
    yield Finding("open files", PROBLEM if few else OK, f"at most {soft}", remedy)


def _decoders() -> Iterator[Finding]:
    from mmrl.data.image import dicom_pixels, images

    broken = []
    samples = _samples()
    for name, (make, tolerance) in samples.items():
        try:
            decode = dicom_pixels.decode if name.startswith("DICOM") else images.decode
            given = make()
            found = decode(given)
            scale = 255 if found.dtype.itemsize == 1 else 65535
            error = abs(found / scale - _ramp() / 255).max()
            if found.shape != _ramp().shape or error > tolerance:
                broken.append(f"{name} (wrong pixels)")
        except Exception as error:  # whatever a broken decoder raises
            broken.append(f"{name} ({first_line(error)})")
    if broken:
        yield Finding("decoders", PROBLEM, "; ".join(broken), _INSTALL_AGAIN)
    else:
        yield Finding("decoders", OK, ", ".join(samples))


def _ramp() -> "np.ndarray":
    """u8[64, 64]: what the samples show."""
    import numpy as np

    return np.add.outer(2 * np.arange(64), np.arange(64)).astype(np.uint8)


def _samples() -> dict[str, tuple[Callable[[], bytes], float]]:
    """Name -> a function that encodes the ramp, and the error that its form allows."""
    import cv2
    import imagecodecs
    from openjpeg import utils as openjpeg_utils
    from PIL import Image
    from pydicom import uid

    ramp = _ramp()

    def pillow(form: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(ramp).save(file, form, lossless=True)
        return file.getvalue()

    def jpeg() -> bytes:
        return bytes(cv2.imencode(".jpg", ramp, [cv2.IMWRITE_JPEG_QUALITY, 100])[1])

    def dicom(syntax: str, frame: Callable[[], bytes] | None = None) -> Callable[[], bytes]:
        return lambda: _dicom(syntax, frame() if frame else None)

    lossy, exact = 0.02, 1e-6
    return {
        "PNG": (lambda: bytes(cv2.imencode(".png", ramp)[1]), exact),
        "JPEG": (jpeg, lossy),
        "TIFF": (lambda: pillow("TIFF"), exact),
        "WebP": (lambda: pillow("WEBP"), lossy),
        "DICOM": (dicom(uid.ExplicitVRLittleEndian), exact),
        "DICOM JPEG": (dicom(uid.JPEGBaseline8Bit, jpeg), lossy),
        "DICOM lossless JPEG": (
            dicom(
                uid.JPEGLosslessSV1,
                lambda: bytes(imagecodecs.jpeg8_encode(ramp, lossless=True, predictor=1)),
            ),
            exact,
        ),
        "DICOM JPEG-LS": (
            dicom(uid.JPEGLSLossless, lambda: bytes(imagecodecs.jpegls_encode(ramp))),
            exact,
        ),
        "DICOM JPEG 2000": (
            dicom(uid.JPEG2000Lossless, lambda: bytes(openjpeg_utils.encode_array(ramp))),
            exact,
        ),
    }


def _dicom(syntax: str, frame: bytes | None) -> bytes:
    """The ramp as DICOM: uncompressed, or with a compressed frame."""
    from pydicom import FileDataset, dcmwrite, uid
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate

    ramp, meta = _ramp(), FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax)
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3.4")
    ds = FileDataset("", {}, b"\0" * 128, meta)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid.UID("1.2.3.4")
    ds.Rows, ds.Columns = ramp.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = ramp.tobytes() if frame is None else encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = frame is not None
    file = io.BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def _settings() -> Iterator[Finding]:
    found = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}
    shown = [
        f"{name}={'...' if any(word in name for word in _SECRET) else value}"
        for name, value in sorted(found.items())
    ]
    yield Finding("settings", NOTE if shown else OK, ", ".join(shown) or "none that change mmrl")


def _two_steps() -> Iterator[Finding]:
    print("trains two steps of a tiny model: up to two minutes", file=sys.stderr, flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mmrl-doctor-") as folder:
        command = [sys.executable, "-m", "mmrl.main", "--config=pretrain:smoke"]
        command += [f"--workdir={folder}/run", "--config.total_steps=2", "--nosummary"]
        command += ["--config.optimizer.warmup_steps=0", "--config.evaluators={}"]
        command += ["--config.log_every=1"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        metrics = Path(folder) / "run" / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    took = f"{time.monotonic() - began:.0f} s"
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        remedy = "Solve the problems above first; otherwise report this line."
        yield Finding("two steps", PROBLEM, f"status {done.returncode}: {last}", remedy)
    else:
        losses = [json.loads(line).get("loss") for line in lines]
        shown = ", ".join(f"{loss:.3f}" for loss in losses if loss is not None)
        yield Finding("two steps", OK, f"trained in {took}, start included; losses {shown}")


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
