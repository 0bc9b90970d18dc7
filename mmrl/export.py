"""Writes image and text embeddings with their provenance: Parquet or npz shards and a manifest.

Each record becomes one row: id, patient_id, study_id, split, image and text embedding. A shard
appears only when it is complete. If an export is stopped, start the same command again and it
continues.

    python -m mmrl.export --workdir=runs/pretrain --out=embeddings --split=all
    python -m mmrl.export --encoder=weights/clip --config=configs/judge.py:roco --out=embeddings
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags

from mmrl import build, cli, config, encoder_folder, files, opening, starts
from mmrl.data.corpus import Corpus
from mmrl.data.reading import rejects
from mmrl.devices import compile_cache, gather
from mmrl.evaluators.statistics import Subset
from mmrl.training import checkpoint, initial, run
from mmrl.training.console import Console
from mmrl.training.predict import weights_of
from mmrl.types import InputError

FORMATS = ("parquet", "npz")
SPLITS = ("train", "val", "test", "all")
_SPLITS_OF_ALL = SPLITS[:3]

_FLAGS = cli.new_flags()
_ENCODERS = opening.Encoders(
    _FLAGS, "to use", "FILE[:VARIANT,...]: A preset whose data replace those of the run."
)
_OUT = flags.DEFINE_string(
    "out", None, "FOLDER: Where to write shards and manifest.json. Required.", flag_values=_FLAGS
)
_SPLIT = flags.DEFINE_string(
    "split", "all", f"SPLIT: The records to embed: {', '.join(SPLITS)}.", flag_values=_FLAGS
)
_FORMAT = flags.DEFINE_string(
    "format", "parquet", f"FORMAT: Format of the shards: {', '.join(FORMATS)}.", flag_values=_FLAGS
)
_NAMES = flags.DEFINE_list(
    "names",
    [],
    "NAME,...: Encodings to write, such as image.embedding or image.regions; by default the "
    "embedding of every tower, or all where there is none.",
    flag_values=_FLAGS,
)
_WEIGHTS = flags.DEFINE_bool(
    "weights",
    False,
    "Writes the folder of an encoder instead, from which towers of other runs can start: "
    "weights.npz, encoder.json and the tokenizer.",
    flag_values=_FLAGS,
)
_SHARD_SIZE = flags.DEFINE_integer(
    "shard_size", 4096, "N: Records of a shard.", lower_bound=1, flag_values=_FLAGS
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an export; equal options and inputs give equal shards."""

    split: str
    format: str
    names: tuple[str, ...]
    shard_size: int


def export(
    trained: run.Trained,
    corpora: Mapping[str, Corpus],
    out: Path,
    options: Options,
    manifest: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Embeds every usable record of `corpora`; writes and returns the complete manifest.

    Args:
      manifest: from `begin`, of the same encoders, records and options.
    """
    done = {shard["file"]: shard for shard in manifest["shards"]}
    for split, corpus in corpora.items():
        count = -(-len(corpus) // options.shard_size)
        for number in range(count):
            name = f"{split}-{number:05d}-of-{count:05d}.{options.format}"
            path = out / name
            if name in done and path.exists() and _sha256(path) == done[name]["sha256"]:
                console.say(f"{name}: already complete")
                continue
            rows = range(number * options.shard_size, len(corpus))[: options.shard_size]
            _write_shard(path, _columns(trained, corpus, split, rows, options))
            done[name] = {"file": name, "records": len(rows), "sha256": _sha256(path)}
            files.write_json(out / "manifest.json", {**manifest, "shards": list(done.values())})
            console.say(f"{name}: {len(rows)} records")
    manifest |= {"complete": True, "shards": [done[name] for name in sorted(done)]}
    manifest["counts"] = {split: len(corpus) for split, corpus in corpora.items()}
    refused = [reject for corpus in corpora.values() for reject in corpus.rejects]
    manifest["rejected"] = rejects.summarise(refused)
    files.write_json(out / "manifest.json", manifest)
    return manifest


def write_weights(trained: run.Trained, out: Path) -> None:
    """Writes the folder of an encoder, see `encoder_folder`; low-rank updates are merged.

    Raises:
      InputError: `out` is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out={out} is not empty; expected a new or empty folder")
    layout, weights = trained.predict.layout, weights_of(trained.state)
    params = dict(layout.effective(weights["params"]))
    params.pop("lora", None)
    arrays = {**initial.by_path(params), **initial.by_path(weights["variables"])}
    # A .npz file has no bfloat16; float32 holds each of its values exactly.
    whole: dict[str, Any] = {
        path: gather.whole(leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf)
        for path, leaf in arrays.items()
    }
    with files.whole(out / encoder_folder.WEIGHTS) as fresh, fresh.open("wb") as file:
        np.savez(file, **whole)
    given = config.plain(trained.config)
    towers = {name: starts.options_of(given["towers"][name]) for name in layout.features}
    for name, tokenizer in trained.tokenizers.items():
        file_name = run.tokenizer_file(name, trained.tokenizers)
        tokenizer.save(out / file_name)
        towers[name] |= {"tokenizer": file_name, "vocab_size": tokenizer.vocab_size}
    encoder_folder.write(
        out,
        towers=towers,
        data={"resize": given["data"]["resize"]},
        inputs=given["inputs"],
        dtype=given["dtype"],
        source={
            "family": "mmrl",
            "step": trained.step,
            "weights_sha256": trained.weights_sha256(),
            "tokenizers_sha256": {name: one.sha256 for name, one in trained.tokenizers.items()},
            "versions": checkpoint.versions(),
        },
    )


def begin(
    trained: run.Trained, corpora: Mapping[str, Corpus], out: Path, options: Options
) -> dict[str, Any]:
    """Returns a new manifest, or that of an interrupted export, which is then resumed.

    Raises:
      InputError: `out` is not empty and holds no export of the same encoders and records.
    """
    return _open(out, _identity(trained, corpora, options))


def _identity(
    trained: run.Trained, corpora: Mapping[str, Corpus], options: Options
) -> dict[str, Any]:
    """The entries that must be equal for an export to be resumed."""
    examples = {split: trained.examples(corpus) for split, corpus in corpora.items()}
    first = next(iter(examples.values()))
    return {
        "columns": {name.replace(".", "_").replace("@", "_"): name for name in options.names},
        "embedding": {"dtype": "float32", "normalisation": "L2"},
        "grids": {tower: list(grid) for tower, grid in trained.predict.grids.items()},
        "checkpoint": {"step": trained.step, "weights_sha256": trained.weights_sha256()},
        "tokenizers_sha256": {name: one.sha256 for name, one in trained.tokenizers.items()},
        "preprocessing": first.preprocessing,
        "towers": config.plain(trained.config.towers),
        "data": {split: {"name": e.name, "sha256": e.sha256} for split, e in examples.items()},
        **({"source": config.plain(trained.meta["source"])} if trained.step is None else {}),
        "options": config.plain(dataclasses.asdict(options)),
        "versions": checkpoint.versions(),
    }


def _open(out: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of an interrupted export, or a new one."""
    path = out / "manifest.json"
    if path.exists():
        manifest = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in identity if manifest.get(key) != identity[key]]
        if differing:
            raise InputError(
                f"--out={out} holds another export; it differs in: {', '.join(differing)}. "
                "Choose another folder"
            )
        return manifest
    if out.is_dir() and [p for p in out.iterdir() if p.name != "rejects.jsonl"]:
        raise InputError(
            f"--out={out} is not empty and holds no manifest.json; expected a new or empty folder, "
            "or that of an earlier export"
        )
    out.mkdir(parents=True, exist_ok=True)
    manifest = {**identity, "complete": False, "shards": []}
    files.write_json(path, manifest)
    return manifest


def _columns(
    trained: run.Trained, corpus: Corpus, split: str, rows: range, options: Options
) -> dict[str, Any]:
    """Column name -> list of str or float32 array, one entry per record."""
    examples = Subset(trained.examples(corpus), rows)
    records = [corpus.record(row) for row in rows]
    # Not predict.encode, which would keep every shard in memory.
    parts = list(trained.predict.stream(trained.state, examples, options.names))
    columns: dict[str, Any] = {
        "id": [record.id for record in records],
        "patient_id": [record.patient_id for record in records],
        "study_id": [record.study_id for record in records],
        "split": [split] * len(records),
    }
    for name in options.names:
        values = np.concatenate([part[name] for part in parts])
        columns[name.replace(".", "_").replace("@", "_")] = np.asarray(values, np.float32)
    return columns


def _write_shard(path: Path, columns: Mapping[str, Any]) -> None:
    with files.whole(path) as fresh, fresh.open("wb") as file:
        if path.suffix == ".npz":
            # Fixed-width strings, so that readers need no pickle.
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in columns.items()}
            np.savez(file, **arrays)
        else:
            table = pa.table({name: _arrow(values) for name, values in columns.items()})
            pq.write_table(table, file, compression="zstd")


def _arrow(values: Any) -> pa.Array:
    """Strings unchanged; f32[N, ...] as fixed-size lists, with regions flattened in row order."""
    if not isinstance(values, np.ndarray):
        return pa.array(values, pa.string())
    flat = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), pa.float32()), flat.shape[1])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Exports the chosen splits."""
    if _WEIGHTS.value and not _ENCODERS.is_run:
        raise InputError("--weights needs --workdir; the folder of an encoder holds its weights")
    out = cli.folder("out", _OUT.value)
    for flag, value, offered in (
        ("split", _SPLIT.value, SPLITS),
        ("format", _FORMAT.value, FORMATS),
    ):
        if value not in offered:
            raise InputError(build.unknown(f"value of --{flag}", value, offered))
    trained, chosen, _ = _ENCODERS.open()
    console = Console()
    if note := compile_cache.use(chosen.compile_cache):
        console.say(note)
    if _WEIGHTS.value:
        write_weights(trained, out)
        console.say(f"encoder: {out}")
        return
    provided = trained.predict.provides
    embeddings = tuple(name for name in provided if name.endswith(".embedding"))
    names = tuple(_NAMES.value) or embeddings or provided
    trained.predict.check(names)
    options = Options(_SPLIT.value, _FORMAT.value, names, _SHARD_SIZE.value)
    splits = _SPLITS_OF_ALL if options.split == "all" else (options.split,)
    whole = options.split == "all"
    read = {
        name: run.load_corpus(chosen, name, encodings=names, allow_empty=whole) for name in splits
    }
    corpora = {name: corpus for name, corpus in read.items() if len(corpus)}
    if not corpora:
        raise InputError(f"{chosen.data.source} has no usable record in any split")
    manifest = begin(trained, corpora, out, options)
    run.check_rejects(corpora, out, chosen.data.max_reject_fraction)
    manifest = export(trained, corpora, out, options, manifest, console)
    console.say(
        f"{sum(manifest['counts'].values())} records "
        f"in {len(manifest['shards'])} shards; manifest: {out / 'manifest.json'}"
    )


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
