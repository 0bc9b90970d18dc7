"""Evaluations on disk: results.json, and draws.npz with what its intervals are of.

Draws are kept so that two evaluations can be compared by paired differences, long after the
encoders are gone.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import files
from mmrl.evaluators.base import Estimate, Results
from mmrl.types import InputError

RESULTS, DRAWS = "results.json", "draws.npz"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation that `write` wrote.

    Attributes:
      path: of its results.json.
      content: of that file.
      draws: "{evaluator}/{measure}" -> f32[S].
    """

    path: Path
    content: Mapping[str, Any]
    draws: Mapping[str, np.ndarray]

    @property
    def results(self) -> Mapping[str, Mapping[str, Any]]:
        """Evaluator -> `Results.to_dict()`."""
        return self.content["results"]

    def estimates(self, evaluator: str) -> dict[str, Estimate]:
        """The values of an evaluator, with their draws."""
        return {
            name: Estimate(**fields, draws=self.draws.get(f"{evaluator}/{name}"))
            for name, fields in self.results[evaluator]["values"].items()
        }


def write(folder: Path, content: Mapping[str, Any], results: Mapping[str, Results]) -> Path:
    """Writes results.json, with `content` before the results, and draws.npz beside it.

    Returns:
      The path of results.json.
    """
    drawn = {
        f"{name}/{key}": draws.astype(np.float32)
        for name, result in results.items()
        for key, draws in result.draws().items()
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, draws in drawn.items():  # np.savez would write the time of day
            array = io.BytesIO()
            np.lib.format.write_array(array, draws, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), array.getvalue(), zipfile.ZIP_DEFLATED)
    files.write(folder / DRAWS, packed.getvalue())
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    whole = {
        **content,
        "draws_sha256": digest,
        "results": {name: result.to_dict() for name, result in results.items()},
    }
    files.write_json(folder / RESULTS, whole)
    return folder / RESULTS


def read(path: Path) -> Evaluation:
    """Reads an evaluation.

    Args:
      path: of its results.json, or of the folder.

    Raises:
      InputError: there is none, it is of a version that stored no draws, or its draws are missing
        or belong to other results.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; expected a run, an encoder or an evaluation (its folder, "
            f"or its {RESULTS})"
        ) from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise InputError(
            f"{file} holds no results; expected a {RESULTS} of python -m mmrl.evaluate"
        )
    if "draws_sha256" not in content:
        raise InputError(
            f"{file} has no draws, because an earlier version wrote it; evaluate again"
        )
    archive = file.with_name(DRAWS)
    try:
        data = archive.read_bytes()
    except OSError as error:
        raise InputError(f"{archive}: {error.strerror}; it belongs to {file}") from None
    if hashlib.sha256(data).hexdigest() != content["draws_sha256"]:
        raise InputError(f"{archive} does not belong to {file}: its digest is another one")
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        draws = {name: found[name] for name in found.files}
    return Evaluation(file, content, draws)
