"""config.data.views: which images of a study training and evaluation use.

A *view* here is an image that was chosen, whatever its projection (PA, AP, lateral).
"""

import dataclasses
import functools
from collections.abc import Sequence

from mmrl import build
from mmrl.data.reading.lazy import LazyBoxes
from mmrl.types import Box, InputError, Record

CHOICES = ("first", "frontal", "random", "each")
"""first: the first image. frontal: the first image of PA, AP or FRONTAL projection; records without
one are rejected. random: training draws one of all images for each example and epoch, evaluation
uses the first frontal image, or the first image where there is none. each: every image is an
example of its own."""

FRONTAL = ("PA", "AP", "FRONTAL")


def check(views: str) -> None:
    """Raises InputError unless `views` is one of `CHOICES`."""
    if views not in CHOICES:
        raise InputError(build.unknown("config.data.views", views, CHOICES))


def numbers(record: Record, views: str) -> tuple[int, ...]:
    """The numbers of the images that become an example each, as evaluation uses them.

    () if the record is to be rejected.
    """
    if views == "first":
        return (0,) if record.images else ()
    if views == "each":
        return tuple(range(len(record.images)))
    frontal = [number for number, image in enumerate(record.images) if image.projection in FRONTAL]
    if not frontal and views == "random" and record.images:
        return (0,)
    return tuple(frontal[:1])


def example_id(record: Record, number: int, views: str) -> str:
    """The id of an example: that of the record, or "ID#2" for its second image if views is each."""
    return f"{record.id}#{number + 1}" if views == "each" and number else record.id


def seen_by(record: Record, number: int) -> Record:
    """The record with image `number` alone and the boxes on it.

    Masks belong to the first image, so they are kept only with that one.
    """
    return dataclasses.replace(
        record,
        images=(record.images[number],),
        boxes=LazyBoxes(functools.partial(_boxes_on, record.boxes, number)),
        masks=record.masks if number == 0 else None,
    )


def _boxes_on(boxes: Sequence[Box], number: int) -> tuple[Box, ...]:
    """The boxes on image `number`, numbered as boxes of the only image."""
    on = (box for box in boxes if box.image == number)
    return tuple(dataclasses.replace(box, image=0) for box in on)
