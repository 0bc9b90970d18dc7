"""Which images of a study training and evaluation look at: config.data.views."""

import dataclasses
import functools
from collections.abc import Sequence

from mmrl import build
from mmrl.data.reading.lazy import LazyBoxes
from mmrl.types import Box, InputError, Record

CHOICES = ("first", "frontal", "random", "each")
"""first: the first image. frontal: the first PA, AP or FRONTAL view; records without one are
rejected. random: training draws one of all images for each example and epoch, evaluation takes the
first frontal view, or the first image where there is none. each: every image is an example."""

FRONTAL = ("PA", "AP", "FRONTAL")


def check(views: str) -> None:
    """Raises InputError unless `views` is one of `CHOICES`."""
    if views not in CHOICES:
        raise InputError(build.unknown("config.data.views", views, CHOICES))


def numbers(record: Record, views: str) -> tuple[int, ...]:
    """The images that become an example each, as evaluation sees them; () rejects the record."""
    if views == "first":
        return (0,) if record.images else ()
    if views == "each":
        return tuple(range(len(record.images)))
    frontal = [number for number, image in enumerate(record.images) if image.view in FRONTAL]
    if not frontal and views == "random" and record.images:
        return (0,)
    return tuple(frontal[:1])


def example_id(record: Record, number: int, views: str) -> str:
    """The record's id; of its second image and further ones, where each counts, "id#2"."""
    return f"{record.id}#{number + 1}" if views == "each" and number else record.id


def seen_by(record: Record, number: int) -> Record:
    """The record as if `number` were its only image: boxes are those on it.

    Masks belong to the first image of a record, and are left out with it.
    """
    return dataclasses.replace(
        record,
        images=(record.images[number],),
        boxes=LazyBoxes(functools.partial(_boxes_on, record.boxes, number)),
        masks=record.masks if number == 0 else None,
    )


def _boxes_on(boxes: Sequence[Box], number: int) -> tuple[Box, ...]:
    """The boxes on one image, which is then the first."""
    on = (box for box in boxes if box.image == number)
    return tuple(dataclasses.replace(box, image=0) for box in on)
