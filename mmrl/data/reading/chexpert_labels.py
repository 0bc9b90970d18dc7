"""The fourteen observations of CheXpert's labeller, as CheXpert and MIMIC-CXR-JPG hold them."""

from collections.abc import Iterable, Mapping, Sequence

from mmrl.data.reading.splits import hash_unit
from mmrl.types import InputError

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
"""In the order of CheXpert; other files order them otherwise, so columns are found by name."""

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five that CheXpert's competition and the 5x200 protocol judge."""

_CELLS = {"": -2, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


def read_labels(cells: Mapping[str, str]) -> tuple[int, ...]:
    """The values of `LABELS`: 1 present, 0 absent, -1 uncertain, -2 not stated (blank).

    Raises:
      ValueError: another value; the message names the column.
    """
    for name in LABELS:
        if cells[name] not in _CELLS:
            raise ValueError(f"{name} is {cells[name]!r}, expected 1, 0, -1 or blank")
    return tuple(_CELLS[cells[name]] for name in LABELS)


def only_competition_label(labels: Sequence[int]) -> str:
    """The one of `COMPETITION` that an image shows and shows alone, or "".

    It is 1, and every other of `LABELS` but No Finding is 0 or blank; uncertain ones disqualify
    (GLoRIA, Huang et al. 2021, section 4.1: images positive for one condition only).
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
    """The 5x200 protocol: `count` images that show one of `COMPETITION` alone, for each of them.

    The published selections are random draws that were not published or follow one library's
    generator; this one takes the images whose ids have the lowest hashes, in any order of rows.

    Args:
      images: (id, values of `LABELS`) of the frontal images of CheXpert's training set.
      count: images per class, 200 in the protocol.
      salt: names another draw.

    Returns:
      id -> class, by class and hash. Whoever trains must leave out all images of their patients.

    Raises:
      InputError: fewer than `count` images of a class.
    """
    pools: dict[str, list[tuple[float, str]]] = {name: [] for name in COMPETITION}
    for native, labels in images:
        if name := only_competition_label(labels):
            pools[name].append((hash_unit(native, salt=salt), native))
    if short := [f"{len(pool)} of {name}" for name, pool in pools.items() if len(pool) < count]:
        raise InputError(
            f"{count} images per class asked for; of images that show one condition alone there"
            f" are {', '.join(short)}"
        )
    return {native: name for name, pool in pools.items() for _, native in sorted(pool)[:count]}
