"""Cards: sample records of a prepared corpus with picture, boxes, text and labels."""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from mmrl.data.reading import shards
from mmrl.data.reading.splits import hash_unit
from mmrl.preparation.holdings import Holdings
from mmrl.reporting import page
from mmrl.types import Box

CARDS = 24
_SIDE = 256  # pixels of the long side of a picture
_CUT = 700  # characters of a section that are shown
_RIM, _LINE = (0, 0, 0), (0, 159, 230)  # black and orange (Okabe and Ito), as BGR


@dataclasses.dataclass(frozen=True)
class Card:
    """One record.

    Attributes:
      row: its row in the index.
      id, split: those of the record.
      picture: a JPEG file, b"" where the record has no image.
      bits: of the stored image, 0 where there is none.
      rows: (name, text) pairs.
    """

    row: int
    id: str
    split: str
    picture: bytes
    bits: int
    rows: tuple[tuple[str, str], ...]


def choose(held: Holdings, number: int = CARDS) -> list[int]:
    """Chooses the rows to show: half of train, a quarter of each other split.

    If a split has too few records, the other splits take its places. Within a split, up to a third
    of the places are for records with boxes or masks. Records are in the order of a hash of their
    ids, so the choice does not depend on the order of the corpus.
    """
    ids, boxes = held.column("id"), held.column("num_boxes")
    masks = held.column("mask_labels")
    ranked: dict[str, list[int]] = {}
    for split, rows in held.splits.items():
        order = sorted(rows.tolist(), key=lambda row: hash_unit(ids[row], salt="audit"))
        third = math.ceil(number / len(held.splits) / 3)
        drawn = [row for row in order if boxes[row] or masks[row]][:third]
        taken = set(drawn)
        ranked[split] = drawn + [row for row in order if row not in taken]
    shares = {"train": 2, "val": 1, "test": 1}
    places = dict.fromkeys(ranked, 0)
    for _ in range(min(number, len(held))):
        # The next place is for the split with the fewest places relative to its share.
        free = [split for split in ranked if places[split] < len(ranked[split])]
        places[min(free, key=lambda split: (places[split] + 1) / shares[split])] += 1
    return [row for split, rows in ranked.items() for row in rows[: places[split]]]


def make(held: Holdings, row: int) -> Card:
    """Makes the card of a record.

    Raises:
      InputError: its shard is damaged.
    """
    rows: list[tuple[str, str]] = []
    picture, bits = b"", 0
    count = int(held.image_counts[row])
    if count:
        boxes = shards.load_boxes(*held.place(row)) if held.column("num_boxes")[row] else ()
        masks = shards.load_masks(*held.place(row)) if held.column("mask_labels")[row] else {}
        number = boxes[0].image if boxes and boxes[0].image < count else 0
        image = held.image(row, number)
        bits = 8 * image.dtype.itemsize
        shown = [box for box in boxes if box.image == number]
        picture = draw(image, shown, list(masks.values()) if number == 0 else [])
        height = held.column("orig_heights")[row][number]
        width = held.column("orig_widths")[row][number]
        spacing = "".join(f", {mm:.3g} mm" for mm in held.column("spacings")[row][number][:1])
        projection = held.column("projections")[row][number]
        which = f"{number + 1} of {count}, " if count > 1 else ""
        rows.append(("image", f"{which}{projection}, {width} x {height}{spacing}"))
        if shown:
            rows.append(("boxes", ", ".join(dict.fromkeys(box.label for box in shown))))
        if masks:
            rows.append(("masks", ", ".join(masks)))
    else:
        rows.append(("image", "none"))
    for name in held.known:
        text = " ".join((held.column(f"section.{name}")[row] or "").split())
        if text:
            rows.append((name, text if len(text) <= _CUT else f"{text[:_CUT]} [...]"))
    rows += _labels(held, row)
    split = held.column("split")[row]
    return Card(row, held.column("id")[row], split, picture, bits, tuple(rows))


def _labels(held: Holdings, row: int) -> list[tuple[str, str]]:
    """The names of present and uncertain labels, and the number of absent ones."""
    values = held.column("labels")[row] or []
    if not values:
        return []
    names = held.manifest["label_names"]
    listed = {
        value: [name for name, given in zip(names, values, strict=True) if given == value]
        for value in (1, -1, 0)
    }
    found = [("present", ", ".join(listed[1]) or "none")]
    if listed[-1]:
        found.append(("uncertain", ", ".join(listed[-1])))
    return [*found, ("absent", f"{len(listed[0])} of {len(names)} labels")]


def draw(image: np.ndarray, boxes: Sequence[Box], masks: Sequence[np.ndarray]) -> bytes:
    """Draws an image with outlines as a JPEG whose long side has 256 pixels.

    Args:
      image: u8 or u16 [H, W] or [H, W, 3]; the range of u16 is stretched to that of the image.
      boxes: in pixels of the image.
      masks: bool[H, W] each.
    """
    if image.dtype == np.uint16:
        image = (image / max(int(image.max()), 1) * 255).astype(np.uint8)
    scale = _SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    code = cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR
    canvas = cv2.cvtColor(cv2.resize(image, size, interpolation=how), code)
    outlines = []
    for box in boxes:
        x0, y0, x1, y1 = (round(value * scale) for value in box.xyxy)
        outlines.append(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.int32)[:, None])
    for mask in masks:
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines += cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    for colour, width in ((_RIM, 3), (_LINE, 1)):
        cv2.polylines(canvas, outlines, isClosed=True, color=colour, thickness=width)
    done, data = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise RuntimeError(f"a picture of {size} pixels could not be encoded")
    return data.tobytes()


def as_parts(cards: Sequence[Card]) -> list[page.Part]:
    """The cards as a grid of a page; nothing without cards."""
    shown = [
        page.Card(
            title=card.id,
            note=f"({card.split})",
            data=page.embedded(card.picture, "jpeg") if card.picture else "",
            rows=card.rows,
        )
        for card in cards
    ]
    return [page.Cards(shown)] if shown else []
