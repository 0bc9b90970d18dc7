"""A folder as those of the Hugging Face hub: safetensors, config, tokenizer and model card.

Where a library knows the architecture, the tensors have its names, and it loads the folder. What it
has no place for, such as further heads, lies beside them under our names, and `mmrl.load` reads
both. Every other encoder has our names alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mmrl import encoder_folder, files
from mmrl.exports import card, probes, weights
from mmrl.exports.families import base
from mmrl.exports.plan import Plan
from mmrl.training import run

CONFIG, CARD = "config.json", "README.md"
_METADATA = {"format": "pt"}  # which transformers wants to read


def write(trained: run.Trained, made: Plan, out: Path) -> float:
    """Writes the folder, which appears whole or not at all, once it gives the same encodings.

    Returns:
      The largest difference, see `probes.check`.

    Raises:
      InputError: `out` is there and not empty; the folder gives other encodings.
    """
    with files.whole_folder(out) as fresh:
        for part in made.parts:
            _write_part(fresh / part.folder, part.written)
        stated = weights.described(trained, fresh, made.towers)
        _save(fresh / made.file, made.own)
        stated["weights"] = {
            "file": made.file,
            "libraries": [
                {"folder": one.folder, "family": one.written.family, "towers": dict(one.towers)}
                for one in made.parts
            ],
        }
        if not (fresh / CONFIG).exists():
            files.write_json(fresh / CONFIG, {"model_type": "mmrl", **_plain(stated)})
        if names := [one["tokenizer"] for one in stated["towers"].values() if "tokenizer" in one]:
            _tokenizer_config(trained, fresh, names[0])
        files.write(fresh / CARD, card.text(trained, made, stated))
        encoder_folder.write(fresh, **stated)
        again = run.read_encoder(fresh)
        return probes.check("the written folder", probes.encoded(trained), probes.encoded(again))


def _write_part(folder: Path, written: base.Written) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in written.files.items():
        files.write_json(folder / name, content)
    _save(folder / written.weights, written.tensors)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Safetensors; an array that is no contiguous one would be written in another order."""
    whole = {name: np.ascontiguousarray(one).reshape(one.shape) for name, one in arrays.items()}
    files.write(path, safetensors.numpy.save(whole, _METADATA))


def _plain(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {key: stated[key] for key in ("towers", "data", "inputs", "dtype")}


def _tokenizer_config(trained: run.Trained, folder: Path, name: str) -> None:
    """tokenizer_config.json for transformers, of a tokenizer.json."""
    if name != "tokenizer.json":
        return
    (tower, tokenizer), *_ = trained.tokenizers.items()
    known = json.loads((folder / name).read_text(encoding="utf-8"))
    pieces = {one["id"]: one["content"] for one in known.get("added_tokens", ())}
    pieces |= {number: piece for piece, number in _vocabulary(known).items()}
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(trained.config.towers[tower].length),
        **({"pad_token": pieces[tokenizer.pad]} if tokenizer.pad in pieces else {}),
    }
    files.write_json(folder / "tokenizer_config.json", content)


def _vocabulary(known: Mapping[str, Any]) -> dict[str, int]:
    """Piece -> id of the model of a tokenizer.json."""
    stated = known["model"].get("vocab", {})
    if isinstance(stated, list):  # of Unigram: pieces with their scores
        return {piece: number for number, (piece, _) in enumerate(stated)}
    return dict(stated)
