"""The arrays of an encoder that carries no run, whichever names its files use."""

import numpy as np

from mmrl.encoder_folder import EncoderFolder, Library
from mmrl.models.convert import base
from mmrl.models.convert.source import Source


def arrays(own: EncoderFolder) -> dict[str, np.ndarray]:
    """Path -> array, of every parameter and statistic of the towers, and of objectives.

    Raises:
      InputError: files that are missing, damaged or of another family than encoder.json says.
    """
    found: dict[str, np.ndarray] = {}
    for library in own.libraries:
        found |= _of_library(library)
    return {**found, **own.weights()}


def _of_library(library: Library) -> dict[str, np.ndarray]:
    """The parameters of the towers that a library holds, under their names here."""
    source = Source(library.folder)
    name, family = base.find(source, library.family)
    with base.fitting(source, name):
        conversion = family.convert(source)
        made = {
            one.target: one.make(*map(source.tensor, one.sources)) for one in conversion.entries
        }
    found = {}
    for path, array in made.items():
        part, kind, inner = (*path.split("/", 2), "")[:3]
        if part == "towers" and kind in library.towers:
            found[f"towers/{library.towers[kind]}/{inner}"] = np.asarray(array, np.float32)
    return found
