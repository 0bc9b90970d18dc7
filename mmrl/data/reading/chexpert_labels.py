"""The fourteen labels of the CheXpert labeller, which CheXpert and MIMIC-CXR-JPG have."""

from collections.abc import Iterable, Mapping, Sequence

from mmrl.data.reading.splits import hash_unit
from mmrl.types import InputError

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
"""In the order of CheXpert. Other files have another order, so columns are found by name."""

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five labels of the CheXpert competition and of the 5x200 protocol."""

_CELLS = {"": -2, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


def read_labels(cells: Mapping[str, str]) -> tuple[int, ...]:
    """The values of `LABELS`: 1 present, 0 absent, -1 uncertain, -2 not stated (blank).

    Raises:
      ValueError: any other value; the message names the column.
    """
    for name in LABELS:
        if cells[name] not in _CELLS:
            raise ValueError(f"{name} is {cells[name]!r}, expected 1, 0, -1 or blank")
    return tuple(_CELLS[cells[name]] for name in LABELS)


def only_competition_label(labels: Sequence[int]) -> str:
    """The label of `COMPETITION` that is the only positive label of an image, or "".

    The label is 1, and all other `LABELS` except No Finding are 0 or blank. Images with an
    uncertain label do not qualify (GLoRIA, Huang et al. 2021, section 4.1: images that are positive
    for one condition only).
    """
    stated = [
        name
        for name, value in zip(LABELS, labels, strict=True)
        if value not in (0, -2) and name != "No Finding"
    ]
    if len(stated) != 1 or stated[0] not in COMPETITION:
        return ""
    return stated[0] if labels[LABELS.index(stated[0])] == 1 else ""


def select_per_class(
    images: Iterable[tuple[str, Sequence[int]]], count: int, *, salt: str = ""
) -> dict[str, str]:
    """Selects `count` images for each label of `COMPETITION`, as in the 5x200 protocol.

    In the images of a label, it is the only positive one. The published selections are random draws
    that are either not published or depend on one library's generator. This selection takes the
    images whose ids have the lowest hashes, so it does not depend on the order of rows.

    Args:
      images: (id, values of `LABELS`) of the frontal images of CheXpert's training set.
      count: images per class, 200 in the protocol.
      salt: another salt gives another selection.

    Returns:
      id -> class, ordered by class and hash. Training must exclude all images of their patients.

    Raises:
      InputError: a class has fewer than `count` images.
    """
    pools: dict[str, list[tuple[float, str]]] = {name: [] for name in COMPETITION}
    for native, labels in images:
        if name := only_competition_label(labels):
            pools[name].append((hash_unit(native, salt=salt), native))
    if short := [f"{len(pool)} of {name}" for name, pool in pools.items() if len(pool) < count]:
        raise InputError(
            f"expected {count} images per class that show one condition only;"
            f" found {', '.join(short)}"
        )
    return {native: name for name, pool in pools.items() for _, native in sorted(pool)[:count]}
