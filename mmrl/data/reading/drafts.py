"""What a source says of its corpus, and of each record before the record is checked.

A draft is plain data, packs into a few hundred bytes beside its text, and names images by path.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgpack

from mmrl.data.image.masks import Mask
from mmrl.types import Box, Entailment, Finding


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the owner of a corpus says of it.

    Attributes:
      title, url, license, version: as the owner gives them; the licence by its SPDX name if it
        has one. Records may carry licences of their own.
      access: open, click (an agreement is clicked) or credentialed.
      redistributable: whether the licence lets others be given copies.
      expected: counts of the complete corpus, checked against what is found, by "records",
        "images", "patients", "leakage_units", each also as "records/train" and so on.
      namespace: whose leakage units these are; "" the source's own. Corpora cut from the same
        articles share one ("pmc").
      within: corpora that this one is a part of, whole or in part.
      templated: reports are made by a grammar, so that equal ones are no sign of a leak.
    """

    title: str
    url: str
    license: str
    access: str = "open"
    redistributable: bool = False
    version: str = ""
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    namespace: str = ""
    within: tuple[str, ...] = ()
    templated: bool = False


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image as a corpus names it; `path` is relative to the source's image folder."""

    path: str
    projection: str = "UNKNOWN"
    projection_source: str = ""
    spacing: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Draft:
    """A record before its split and its images are checked; fields as in `mmrl.types.Record`.

    `id` is the native id, without the source's name. `patient`, `study` and `leakage_unit` may be
    "": then the id stands in for the patient, "{patient}/{id}" for the study, the patient for the
    leakage unit. `split` is what the owner says: train, val, test, or "" for nothing.
    """

    id: str
    patient: str = ""
    study: str = ""
    leakage_unit: str = ""
    split: str = ""
    images: tuple[ImageFile, ...] = ()
    sections: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    findings: tuple[Finding, ...] = ()
    sentences: tuple[tuple[str, str], ...] = ()
    masks: tuple[Mask, ...] = ()
    aliases: tuple[str, ...] = ()
    entailment: Entailment | None = None
    prior_id: str = ""
    time: int | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    language: str = "en"
    license: str = ""


def pack(draft: Draft) -> bytes:
    """A draft as msgpack; fields at their default are left out."""
    fields = {field.name: getattr(draft, field.name) for field in dataclasses.fields(draft)}
    stated = {name: value for name, value in fields.items() if value != _DEFAULTS[name]}
    return msgpack.packb(stated, default=_plain)


def unpack(data: bytes) -> Draft:
    """The inverse of `pack`."""
    fields: dict[str, Any] = msgpack.unpackb(data, use_list=False)
    for name, kind in _NESTED.items():
        if name in fields:
            fields[name] = tuple(kind(*values) for values in fields[name])
    if "entailment" in fields:
        fields["entailment"] = Entailment(*fields["entailment"])
    return Draft(**fields)


_DEFAULTS = vars(Draft(""))
_NESTED: dict[str, type] = {"images": ImageFile, "boxes": Box, "findings": Finding, "masks": Mask}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    raise TypeError(f"{type(value).__name__} in a draft")


def without_images(draft: Draft, lost: set[str]) -> Draft:
    """The draft without some images; boxes follow theirs."""
    places = [at for at, file in enumerate(draft.images) if file.path not in lost]
    moved = {old: new for new, old in enumerate(places)}
    return dataclasses.replace(
        draft,
        images=tuple(draft.images[at] for at in places),
        boxes=tuple(
            dataclasses.replace(box, image=moved[box.image])
            for box in draft.boxes
            if box.image in moved
        ),
        masks=draft.masks if 0 in moved else (),
    )
