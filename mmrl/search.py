"""Searches embeddings that python -m mmrl.export wrote, with a text, an image, both, or a record.

Scores are cosines. A text and an image together are asked for by the mean of their embeddings,
each of length 1. Texts and images are embedded by the encoder that made the embeddings, which
--workdir or --encoder names; another one is refused. --build makes an index of FAISS, which later
searches use; without one all embeddings are compared, in chunks.

    python -m mmrl.search --index=embeddings --workdir=runs/pretrain --text="Small left effusion."
    python -m mmrl.search --index=embeddings --workdir=runs/pretrain --image=a.png --sheet=found.png
    python -m mmrl.search --index=embeddings --workdir=runs/pretrain --image=a.png --text="Left."
    python -m mmrl.search --index=embeddings --id=phantom:0-57 --find=text --json
    python -m mmrl.search --index=embeddings --build
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from mmrl import cli, opening
from mmrl.types import InputError

if TYPE_CHECKING:  # these take seconds, which --help and refused commands do not need
    from mmrl.data.batches.pipeline import Examples
    from mmrl.index import Hits, Index
    from mmrl.training.run import Trained

_FLAGS = cli.new_flags()
_INDEX = flags.DEFINE_string(
    "index", None, "FOLDER: The exported embeddings. Required.", flag_values=_FLAGS
)
_TEXT = flags.DEFINE_string("text", None, "TEXT: Searches with a text.", flag_values=_FLAGS)
_IMAGE = flags.DEFINE_string(
    "image", None, "FILE: Searches with an image of any kind.", flag_values=_FLAGS
)
_ID = flags.DEFINE_string(
    "id", None, "ID: Searches with the embedding of a record of the index.", flag_values=_FLAGS
)
_FIND = flags.DEFINE_string(
    "find",
    "",
    "TOWER: Which embeddings to search, image or text; by default image, if there are any.",
    flag_values=_FLAGS,
)
_K = flags.DEFINE_integer(
    "k", 10, "N: How many records to find.", lower_bound=1, flag_values=_FLAGS
)
_JSON = flags.DEFINE_bool(
    "json", False, "Prints the records as one line of JSON, the last.", flag_values=_FLAGS
)
_SHEET = flags.DEFINE_string(
    "sheet",
    None,
    "FILE: Draws the images of the records found as a PNG; this needs the corpus.",
    flag_values=_FLAGS,
)
_ENCODERS = opening.Encoders(
    _FLAGS,
    "that made the embeddings",
    "FILE[:VARIANT,...]: The preset that named the data of the export, for --sheet.",
)
_BUILD = flags.DEFINE_bool(
    "build", False, "Makes an index of FAISS of the embeddings instead.", flag_values=_FLAGS
)
_TYPE = flags.DEFINE_string(
    "type",
    "",
    "TYPE: Of the index of --build, as of faiss.index_factory, such as HNSW32; by default IVF for "
    "65,536 records or more, else Flat.",
    flag_values=_FLAGS,
)


def main() -> None:
    """Searches once, or builds an index."""
    folder = (cli.output if _BUILD.value else cli.folder)("index", _INDEX.value)
    asked = {
        name: flag.value
        for name, flag in (("text", _TEXT), ("image", _IMAGE), ("id", _ID))
        if flag.value is not None
    }
    if _BUILD.value:
        if asked:
            raise InputError(f"--build does not search; given with it: --{next(iter(asked))}")
        _build(folder)
        return
    if _TYPE.value:
        raise InputError(f"--type={_TYPE.value} is for --build")
    if not asked or ("id" in asked and len(asked) > 1):
        given = ", ".join(f"--{name}" for name in asked) or "none"
        raise InputError(f"expected --text, --image, both of these, or --id; given: {given}")
    if _SHEET.value is not None and Path(_SHEET.value).suffix != ".png":
        raise InputError(f"--sheet={_SHEET.value}; expected a PNG file, such as found.png")
    if "id" not in asked or _SHEET.value is not None:
        _ = _ENCODERS.is_run  # refuses a search without its encoder before it starts
    from mmrl.index import Index

    index = Index.open(folder)
    column = index.column(_FIND.value)
    made_with = index.manifest["checkpoint"]
    opened = None if _SHEET.value is None else _ENCODERS.open(made_with["step"])
    if "id" in asked:
        query = index.vectors([index.row(asked["id"])], column)
    else:
        trained = opened.trained if opened else _ENCODERS.alone(made_with["step"])
        query = _embedded(trained, index, asked)
    hits = _hits(index, index.nearest(query, _K.value, column))
    if opened is not None:
        _draw(opened, index, column, asked, hits)
    _print(index, column, asked, hits)


def _embedded(trained: "Trained", index: "Index", asked: Mapping[str, str]) -> np.ndarray:
    """The text, the image, or the mean of both: f32[1, D]."""
    from mmrl.encoder import Encoder
    from mmrl.index import joined

    encoder = Encoder(trained)
    index.check_weights(encoder.weights_sha256, str(trained))
    parts = [
        encoder.embed_texts([value]) if kind == "text" else encoder.embed_images([value])
        for kind, value in asked.items()
    ]
    return joined(*parts)


def _hits(index: "Index", found: "Hits") -> list[dict[str, Any]]:
    """What is said of each record found, best first."""
    scores, rows = (part[0][found.rows[0] >= 0] for part in found)
    ids, splits = index.ids(rows), index.values("split", rows)
    return [
        {"rank": rank, "score": round(float(score), 6), "id": id, "split": split}
        for rank, (score, id, split) in enumerate(zip(scores, ids, splits, strict=True), 1)
    ]


def _print(
    index: "Index", column: str, asked: Mapping[str, str], hits: list[dict[str, Any]]
) -> None:
    how = index.how(column)
    if _JSON.value:
        stated = {"query": asked, "find": column, "search": how}
        print(json.dumps({**stated, "warnings": index.warnings, "hits": hits}))
        return
    for warning in index.warnings:
        print(f"warning: {warning}")
    print(f"{len(hits)} of {len(index)} records, {column}: {how}")
    for hit in hits:
        print(f"{hit['rank']:4} {hit['score']:9.6f}  {hit['split']:5}  {hit['id']}")
    if _SHEET.value is not None:
        print(f"sheet: {_SHEET.value}")


def _build(folder: Path) -> None:
    from mmrl import approximate
    from mmrl.index import Index

    approximate.check()
    index = Index.open(folder, exact=True)
    for column in [index.column(_FIND.value)] if _FIND.value else index.columns:
        made = index.build(column, _TYPE.value)
        print(
            f"{column}: {made['type']} of {made['rows']} rows; finds {made['recall']:.1%} of the "
            f"10 nearest rows of {made['queries']} queries"
        )


def _draw(
    opened: opening.Opened,
    index: "Index",
    column: str,
    asked: Mapping[str, str],
    hits: Sequence[Mapping[str, Any]],
) -> None:
    """Draws the sheet.

    Raises:
      InputError: the records that the encoder's config names are not those of the index.
    """
    from mmrl.data.image import images
    from mmrl.reporting.sheet import Tile, sheet

    examples = _examples(opened, index, dict.fromkeys(hit["split"] for hit in hits))
    tiles = []
    if "image" in asked:
        tiles += [Tile(images.to_uint8(_query(opened, asked["image"])), "query", "")]
    places = {name: {id: i for i, id in enumerate(one.ids)} for name, one in examples.items()}
    for hit in hits:
        of_split, place = examples[hit["split"]], places[hit["split"]][hit["id"]]
        shown = of_split.record(place).images
        image = images.to_uint8(shown[0].load()) if shown else None
        title = f"{hit['rank']}. {hit['id']}, {hit['score']:.3f}"
        tiles.append(Tile(image, title, of_split.texts[place]))
    named = " and ".join(
        f"the {'record' if kind == 'id' else kind} {Path(value).name if kind == 'image' else value}"
        for kind, value in asked.items()
    )
    path = Path(cli.required("sheet", _SHEET.value))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(f"{index.manifest['columns'][column]} nearest to {named}", tiles, path)


def _query(opened: opening.Opened, path: str) -> np.ndarray:
    """The image that is asked about, in colour where the tower reads it."""
    from mmrl.data.image import readers

    return readers.read(path, channels=opened.chosen.towers.image.get("channels", 1))


def _examples(
    opened: opening.Opened, index: "Index", splits: Iterable[str]
) -> dict[str, "Examples"]:
    """The records of some splits of an export, by split."""
    from mmrl.training import run

    encodings = list(index.manifest["columns"].values())
    found = {}
    for split in splits:
        corpus = run.load_corpus(opened.chosen, split, encodings=encodings)
        found[split] = opened.trained.examples(corpus)
        index.check_records(split, found[split].sha256, found[split].name)
    return found


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
