"""Loads exported programs with JAX, NumPy and flatbuffers alone.

programs = Programs("FOLDER")
programs("image.embedding", pixels=images)       # u8[B, S, S, C] -> f32[B, D]
programs("text.embedding", tokens=ids, mask=mask)
"""

import json
import pathlib
from typing import Any

import jax.export
import numpy as np


class Programs:
    """The programs of a folder; `stated` is its programs.json."""

    def __init__(self, folder: Any) -> None:
        self.folder = pathlib.Path(folder)
        self.stated = json.loads((self.folder / "programs.json").read_text(encoding="utf-8"))
        with np.load(self.folder / "weights.npz") as stored:
            self.weights = dict(stored)
        self._loaded: dict[str, Any] = {}

    def __call__(self, name: str, **inputs: Any) -> Any:
        """Runs a program on inputs by name, of any batch size."""
        given = self.stated["programs"][name]
        if name not in self._loaded:
            content = (self.folder / given["file"]).read_bytes()
            self._loaded[name] = jax.jit(jax.export.deserialize(bytearray(content)).call)
        return self._loaded[name]({path: self.weights[path] for path in given["weights"]}, inputs)
