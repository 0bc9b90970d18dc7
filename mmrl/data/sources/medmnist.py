"""MedMNIST v2 and MedMNIST+: twelve sets of small biomedical images with class labels, no text.

Layout, as in https://doi.org/10.5281/zenodo.10519652: {flag}.npz with images of 28 x 28 pixels, and
{flag}_64.npz, {flag}_128.npz and {flag}_224.npz. Each holds

    train_images, val_images, test_images    u8[N, side, side], or u8[N, side, side, 3] in colour
    train_labels, val_labels, test_labels    u8[N, 1], or u8[N, L] for L labels

Licence: CC BY 4.0; DermaMNIST CC BY-NC 4.0. Access: open. Official split: the names of the arrays.
Paper: Yang et al., Scientific Data 2023, doi:10.1038/s41597-022-01721-8. The sets of volumes
(*mnist3d) are not read.

Also handled:
  * The only column of [N, 1] is the class, which becomes a label of 1 among labels of 0. ChestMNIST
    has a column for each label.
  * Sets of colour images (Path-, Derma-, Retina- and BloodMNIST) keep their colour.
  * Arrays inside an archive cannot be mapped into memory. Each process unpacks a whole array when
    it first reads one of its images, and keeps two arrays: PathMNIST at 224 takes 13.5 GB in each
    process.
  * Only the six arrays of an archive are read, nothing is unpickled, and shapes are checked before
    pixels are read.
  * ChestMNIST is made from NIH ChestX-ray14 with another split. Patients are not known, so a model
    must not be trained on one and tested on the other.
"""

import dataclasses
import functools
import math
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mmrl.data.image import arrays
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.reading.rows import Fault
from mmrl.data.reading.splits import SPLITS
from mmrl.types import InputError, Reject

SIZES = (28, 64, 128, 224)

_MEMBERS = tuple(f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels"))
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError)


class _Set(NamedTuple):
    """Class names in the order of their numbers, and numbers of images in train, val and test."""

    labels: tuple[str, ...]
    counts: tuple[int, int, int]
    several: bool = False  # whether an image may have several labels
    within: tuple[str, ...] = ()
    license: str = "CC-BY-4.0"
    channels: int = 1


_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver"),
    *("lung-left", "lung-right", "pancreas", "spleen"),
)
_SETS = {
    "pathmnist": _Set(
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
            *("normal colon mucosa", "cancer-associated stroma"),
            "colorectal adenocarcinoma epithelium",
        ),
        (89996, 10004, 7180),
        channels=3,
    ),
    "chestmnist": _Set(
        (
            *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule"),
            *("pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis"),
            *("pleural", "hernia"),
        ),
        (78468, 11219, 22433),
        several=True,
        within=("nih14",),
    ),
    "dermamnist": _Set(
        (
            *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma"),
            *("benign keratosis-like lesions", "dermatofibroma", "melanoma"),
            *("melanocytic nevi", "vascular lesions"),
        ),
        (7007, 1003, 2005),
        license="CC-BY-NC-4.0",
        channels=3,
    ),
    "octmnist": _Set(
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        (97477, 10832, 1000),
    ),
    "pneumoniamnist": _Set(("normal", "pneumonia"), (4708, 524, 624)),
    "retinamnist": _Set(("0", "1", "2", "3", "4"), (1080, 120, 400), channels=3),
    "breastmnist": _Set(("malignant", "normal, benign"), (546, 78, 156)),
    "bloodmnist": _Set(
        (
            *("basophil", "eosinophil", "erythroblast"),
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            *("lymphocyte", "monocyte", "neutrophil", "platelet"),
        ),
        (11959, 1712, 3421),
        channels=3,
    ),
    "tissuemnist": _Set(
        (
            *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule"),
            *("Glomerular endothelial cells", "Interstitial endothelial cells", "Leukocytes"),
            *("Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb"),
        ),
        (165466, 23640, 47280),
    ),
    "organamnist": _Set(_ORGANS, (34561, 6491, 17778)),
    "organcmnist": _Set(_ORGANS, (12975, 2392, 8216)),
    "organsmnist": _Set(_ORGANS, (13932, 2452, 8827)),
}


class Medmnist(Listing):
    """One record per image of one of the sets, with labels and without text and patient.

    The key of an image is "{archive}/{array}/{position}".

    Args:
      flag: the set: pathmnist, chestmnist and so on.
      size: side of the images, 28, 64, 128 or 224.
      others: see `mmrl.data.reading.listing.Listing`. verify="header" checks the directory of the
        archive and the shapes; "decode" unpacks all of it.

    Attributes:
      rejects: reasons are those of `Listing` and bad_label (a number that is no class).

    Raises:
      InputError: an unknown set or size, no archive, or an archive of another layout.
    """

    facts = Facts(
        title="MedMNIST",
        url="https://doi.org/10.5281/zenodo.10519652",
        license="CC-BY-4.0",
        redistributable=True,
        version="3",
    )

    def __init__(self, *, flag: str, size: int = 28, **others: Any) -> None:
        if flag not in _SETS:
            raise InputError(f"flag is {flag!r}; expected one of: {', '.join(_SETS)}")
        if size not in SIZES:
            raise InputError(f"size is {size!r}; expected one of: {', '.join(map(str, SIZES))}")
        self._flag, self._size, known = flag, size, _SETS[flag]
        self.label_names, self.channels = known.labels, known.channels
        counts = dict(zip(SPLITS, known.counts, strict=True))
        expected = {"records": sum(known.counts), "images": sum(known.counts)}
        self.facts = dataclasses.replace(
            type(self).facts,
            title=f"MedMNIST {flag}",
            license=known.license,
            within=known.within,
            expected=expected | {f"records/{split}": n for split, n in counts.items()},
        )
        super().__init__(**others)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields train, val and test, each in the order of its arrays."""
        archive = self.find(self._flag + ("" if self._size == 28 else f"_{self._size}") + ".npz")
        known, full = _SETS[self._flag], os.path.join(self.path, archive)
        shapes = _shapes(full)
        self.warnings.append(
            f"{self.name()}: patients are not known; the split may divide their images"
        )
        for split in SPLITS:
            images, labels = shapes[f"{split}_images"], shapes[f"{split}_labels"]
            side = (self._size, self._size)
            if images[1:] not in (side, (*side, 3)):
                wanted = f"[N, {self._size}, {self._size}] or [N, {self._size}, {self._size}, 3]"
                raise InputError(f"{full}: {split}_images of shape {images}; expected {wanted}")
            columns = (images[0], len(known.labels) if known.several else 1)
            if labels != columns:
                raise InputError(f"{full}: {split}_labels of shape {labels}; expected {columns}")
            for index, row in enumerate(_read(full, f"{split}_labels").tolist()):
                yield self._draft(archive, split, index, row)

    def _draft(self, archive: str, split: str, index: int, row: list[int]) -> Draft | Reject:
        known, native = _SETS[self._flag], f"{self._flag}/{split}/{index}"
        classes = len(known.labels)
        if max(row) >= (2 if known.several else classes):
            expected = "0 or 1" if known.several else f"0 to {classes - 1}"
            return Reject(f"{self.name()}:{native}", "bad_label", f"{row}; expected {expected}")
        return Draft(
            native,
            split=split,
            images=(ImageFile(f"{archive}/{split}_images/{index}"),),
            labels=tuple(row) if known.several else tuple(int(row[0] == c) for c in range(classes)),
        )

    def loader(self, image: ImageFile) -> Callable[[], np.ndarray]:
        """Returns a function that reads one image of an array."""
        archive, array, index = image.path.split("/")
        full = os.path.join(self.path, archive)
        return functools.partial(_load, full, array, int(index), self.channels)

    def fault_of(self, verify: str, image: ImageFile) -> Fault | None:
        """The reason and detail for which an image is refused, or None.

        `scan` has already checked that the array has the image.
        """
        if verify == "decode":
            archive, array, _ = image.path.split("/")
            full = os.path.join(self.path, archive)
            if problem := _problem(full, array, _stamp(full)):
                return "unreadable_image", problem
        return None


def _load(path: str, array: str, index: int, channels: int) -> np.ndarray:
    """One image: for 1 channel u8[side, side], the luma of colour; for 3 u8[side, side, 3]."""
    pixels = _array(path, array)[index].copy()
    return arrays.colour(pixels) if channels == 3 else arrays.grey(pixels)


_lock = threading.Lock()  # so that only one thread unpacks an array


def _renew_lock() -> None:
    """Gives a forked process a free lock, should another thread of its parent hold it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _array(path: str, array: str) -> np.ndarray:
    """A whole array of images; each process keeps two."""
    stamp = _stamp(path)
    with _lock:
        return _unpacked(path, array, stamp)


@functools.lru_cache(maxsize=2)
def _unpacked(path: str, array: str, stamp: tuple[int, int]) -> np.ndarray:
    return _read(path, array)


def _stamp(path: str) -> tuple[int, int]:
    """Modification time and size of an archive, which change when it is replaced."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=16)
def _problem(path: str, array: str, stamp: tuple[int, int]) -> str:
    """The problem of an array, or ""; each array is read once, not for each image."""
    try:
        _array(path, array)
    except InputError as error:
        return str(error)
    return ""


def _read(path: str, array: str) -> np.ndarray:
    """One array of an archive, u8[N, ...]; nothing is unpickled.

    Raises:
      InputError: the archive or the array is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except (KeyError, *_DAMAGE) as error:
        raise InputError(f"{path}: {array} cannot be read: {error}") from error


def _shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Array name -> shape of all six arrays, from their headers.

    Raises:
      InputError: no archive, other members than the six, or a member that is no u8 array, is in
        Fortran order, or has another size than its shape states.
    """
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sorted(members) != sorted(_MEMBERS) or len(members) < len(archive.infolist()):
                raise InputError(
                    f"{path}: members {', '.join(map(repr, members))}; expected, once each:"
                    f" {', '.join(_MEMBERS)}"
                )
            for name, info in members.items():
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    if version not in _HEADERS:
                        raise InputError(f"{path}: {name} has format {version}; expected 1.0, 2.0")
                    shape, fortran, dtype = _HEADERS[version](member)
                    size = info.file_size - member.tell()
                if dtype != np.uint8 or fortran or not len(shape) or size != math.prod(shape):
                    raise InputError(
                        f"{path}: {name} is {dtype}{list(shape)} in {size} bytes; expected u8 in"
                        " as many bytes as it has entries"
                    )
                shapes[name.removesuffix(".npy")] = shape
    except _DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: no whole archive of arrays: {error}") from error
    return shapes
