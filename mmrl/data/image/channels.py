"""Grey and colour: how many channels the images of a corpus have, and what towers see of them.

The images of a source have `channels` 1 (grey, [H, W]) or 3 (red, green and blue, [H, W, 3]), its
attribute, 1 where it has none. A mixture whose parts differ states 0. config.data.colour says what
becomes of them; nothing converts an image unless it says so.
"""

from typing import Any

import numpy as np

from mmrl.data.image.images import luma
from mmrl.types import InputError

CHANNELS = (1, 3)
COLOURS = ("as_stored", "grey", "rgb")


def of(source: Any) -> int:
    """The channels that the images of a source have: 1, 3, or 0 where they differ."""
    return int(getattr(source, "channels", 1))


def check(what: str, given: Any) -> int:
    """Returns a number of channels; raises InputError unless it is 1 or 3."""
    if type(given) is not int or given not in CHANNELS:
        raise InputError(f"{what}={given!r}; expected 1 (grey) or 3 (red, green and blue)")
    return given


def check_colour(where: str, given: Any) -> None:
    """Raises InputError unless `given` is one of `COLOURS`; `where` is the config key."""
    if given not in COLOURS:
        raise InputError(f"{where}={given!r}; choices: {', '.join(COLOURS)}")


def loaded(colour: str, stored: int, tower: int, *, corpus: str, where: str) -> int:
    """The channels with which images are prepared: those of the tower, or 1, which it repeats.

    Args:
      colour: of `COLOURS`. stored: channels of the corpus. tower: channels that the tower reads.
      corpus, where: name of the corpus and config key of the tower, for the message.

    Raises:
      InputError: `colour` does not make images that the tower can read.
    """
    if colour == "grey":
        return 1
    if (colour == "rgb" and tower == 3) or stored == tower:
        return stored or 3
    holds = f"images of {stored} channel{'s' * (stored > 1)}" if stored else "grey and colour parts"
    fitting = "rgb" if tower == 3 else "grey"
    raise InputError(
        f"config.data.colour={colour}: {corpus} has {holds}, but {where}.channels={tower}; set "
        f"config.data.colour={fitting}, or {where}.channels={4 - tower}"
    )


def fit(image: np.ndarray, channels: int, colour: str) -> np.ndarray:
    """An image with the given number of channels, converted only if `colour` asks for it.

    Args:
      image: u8 or u16 [H, W], or [H, W, 3].

    Returns:
      [H, W] for 1 channel, [H, W, 3] for 3.

    Raises:
      InputError: another number of channels than the corpus states.
    """
    own = 1 if image.ndim == 2 else image.shape[-1]
    if own == channels:
        return image
    if (own, channels, colour) == (3, 1, "grey"):
        return luma(image)
    if (own, channels, colour) == (1, 3, "rgb"):
        return repeated(image)
    raise InputError(
        f"an image {list(image.shape)}; expected {channels} channel{'s' * (channels > 1)}, as its "
        f"corpus states them, with config.data.colour={colour}"
    )


def repeated(image: np.ndarray) -> np.ndarray:
    """[..., H, W] -> [..., H, W, 3] of three equal channels."""
    return np.repeat(image[..., None], 3, axis=-1)
