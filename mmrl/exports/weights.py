"""The parameters of encoders as arrays, and the folder from which towers of other runs start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmrl import config, encoder_folder, files, starts
from mmrl.devices import gather
from mmrl.training import checkpoint, initial, run
from mmrl.training import stored as stored_arrays
from mmrl.types import InputError


def arrays(trained: run.Trained) -> dict[str, np.ndarray]:
    """Path -> array on the host, of towers and of objectives.

    Fusions and derived inputs are left out. Low-rank updates are merged. bfloat16 becomes float32,
    which holds each of its values exactly.
    """
    held = trained.predict.layout.weights_of(trained.state)
    params = trained.predict.layout.effective(held["params"])
    found = {**initial.by_path(params), **initial.by_path(held["variables"])}
    made = {
        path: gather.whole(leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf)
        for path, leaf in found.items()
        if path.startswith(("towers/", "objectives/"))
    }
    if trained.step is None:  # whose objectives, such as a temperature, are not loaded
        own = stored_arrays.arrays(encoder_folder.read(trained.folder))
        made |= {path: one for path, one in own.items() if path.startswith("objectives/")}
    return made


def write(trained: run.Trained, out: Path) -> None:
    """Writes the folder of an encoder, see `encoder_folder`, with weights.npz.

    Raises:
      InputError: `out` is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out={out} is not empty; expected a new or empty folder")
    whole: dict[str, Any] = arrays(trained)
    with files.whole(out / encoder_folder.WEIGHTS) as fresh, fresh.open("wb") as file:
        np.savez(file, **whole)
    encoder_folder.write(out, **described(trained, out))


def described(
    trained: run.Trained, out: Path, towers: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """What encoder.json states of encoders; their tokenizers are written to `out`.

    Args:
      towers: their options; by default those of the config.
    """
    given = config.plain(trained.config)
    found = {name: dict(one) for name, one in (towers or options(trained)).items()}
    for name, tokenizer in trained.tokenizers.items():
        file_name = run.tokenizer_file(name, trained.tokenizers)
        tokenizer.save(out / file_name)
        found[name] |= {"tokenizer": file_name}
    return {
        "towers": found,
        "data": data_of(trained),
        "inputs": given["inputs"],
        "dtype": given["dtype"],
        "source": provenance(trained),
    }


def data_of(trained: run.Trained) -> dict[str, Any]:
    """How images are prepared and positions interpolated, as encoder.json has it."""
    found = {"resize": str(trained.config.data.resize)}
    if trained.step is None:
        found |= encoder_folder.read(trained.folder).data
    if encoder_folder.colour_of(found, trained.config.towers) != trained.config.data.colour:
        found["colour"] = str(trained.config.data.colour)
    return found


def provenance(trained: run.Trained) -> dict[str, Any]:
    """Where encoders are from: what their folder states, or the checkpoint of their run."""
    if trained.step is None:
        return dict(trained.meta["source"])
    return {
        "family": "mmrl",
        "step": trained.step,
        "weights_sha256": trained.weights_sha256(),
        "tokenizers_sha256": {name: one.sha256 for name, one in trained.tokenizers.items()},
        "versions": checkpoint.versions(),
    }


def options(trained: run.Trained) -> dict[str, dict[str, Any]]:
    """Tower -> its options, without those that say how a run uses it."""
    given = config.plain(run.resolved(trained.config, trained.tokenizers))["towers"]
    provided = trained.predict.features
    return {name: starts.options_of(given[name]) for name in given if name in provided}
