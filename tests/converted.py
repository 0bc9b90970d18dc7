"""Converted encoders of `tests/golden/convert`, as towers that compute."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl.models.convert.source import Source
from mmrl.training import convert, learner
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "convert"
_FLOAT32 = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def read(folder: Path, **options: Any) -> convert.Converted:
    """The conversion of a folder, with options of `convert.Options`."""
    return convert.convert(Source(folder), options=convert.Options(**options))


def expected(name: str) -> dict[str, np.ndarray]:
    """What the library of a case computes."""
    with np.load(GOLDEN / name / "expected.npz") as stored:
        return dict(stored)


def tower(converted: convert.Converted, name: str, **changes: Any) -> Any:
    """A tower with the converted weights, and other options where `changes` says so."""
    given = {**converted.towers[name], **changes}
    # Shapes alone: to draw initial values would take longer than all else.
    made = nnx.eval_shape(lambda: learner.make_tower(name, given, lambda _: nnx.Rngs(0), _FLOAT32))
    start = f"towers/{name}/"
    arrays = {
        path.removeprefix(start): array
        for path, array in converted.arrays.items()
        if path.startswith(start)
    }
    if changes.get("scan_layers"):
        arrays = _scanned(arrays)
    state = nnx.state(made, nnx.Not(nnx.RngState))
    flat = dict(nnx.to_flat_state(state))
    assert {"/".join(map(str, path)) for path in flat} == arrays.keys()
    for path, variable in flat.items():
        variable.set_value(jnp.asarray(arrays["/".join(map(str, path))]))
    nnx.update(made, nnx.from_flat_state(flat))
    return made


def _scanned(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of blocks with a leading axis over blocks, as in a scanned stack."""
    found: dict[str, Any] = {}
    for path, array in sorted(arrays.items()):
        inner = re.sub(r"/block_\d+/", "/blocks/", path)
        if inner == path:
            found[path] = array
        else:
            found.setdefault(inner, []).append(array)
    return {k: np.stack(v) if isinstance(v, list) else v for k, v in found.items()}
