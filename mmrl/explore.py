"""Shows what an encoder does, on a page for the browser of this machine.

Type a sentence and see the nearest images; click a word of a report and see where it looks, beside
the true box; pick an image and see the nearest reports; change a word and see which report is
chosen. The page shows the validation split, or the records of --index, an export of
python -m mmrl.export. It asks for the token in the address that the command prints.

    python -m mmrl.explore --workdir=runs/pretrain
    python -m mmrl.explore --workdir=runs/pretrain --index=embeddings
"""

import logging

from absl import flags

from mmrl import build, cli, opening, web
from mmrl.types import InputError
from mmrl.web.address import Address

SPLITS = ("train", "val", "test")

_FLAGS = cli.new_flags()
_ENCODERS = opening.Encoders(
    _FLAGS, "to explore", "FILE[:VARIANT,...]: A preset whose data replace those of the run."
)
_INDEX = flags.DEFINE_string(
    "index",
    None,
    "FOLDER: Embeddings by the same encoder of the same data; all their records are shown.",
    flag_values=_FLAGS,
)
_SPLIT = flags.DEFINE_string(
    "split", None, f"SPLIT: {', '.join(SPLITS)}; without --index. Default: val.", flag_values=_FLAGS
)
_COUNT = flags.DEFINE_integer(
    "count",
    1000,
    "N: The first records of the split are embedded and shown; without --index.",
    lower_bound=1,
    flag_values=_FLAGS,
)
_ADDRESS = Address(_FLAGS, port=8001)


def main() -> None:
    """Opens an encoder and its records, and serves the page."""
    web.check_installed()
    if _INDEX.value and _SPLIT.value:
        raise InputError("--index states its splits; expected --split or --index, not both")
    split = _SPLIT.value or "val"
    if split not in SPLITS:
        raise InputError(build.unknown("value of --split", split, SPLITS))
    if _ADDRESS.is_every:  # any name would have to be accepted, also one that another site controls
        raise InputError(
            "--host is every address of this machine; expected the one that the browser opens"
        )
    # These take seconds, which --help and refused commands do not need.
    from mmrl.web import listening

    place = _ADDRESS.open()
    trained, chosen, _ = _ENCODERS.open()

    from mmrl.encoder import Encoder
    from mmrl.index import Index
    from mmrl.training import run
    from mmrl.web.exploring import LIMITS, Explorer
    from mmrl.web.records import NAMES, Memory, Neighbours, Records

    trained.predict.check(list(NAMES.values()))

    def examples_of(split: str) -> run.Examples:
        corpus = run.load_corpus(chosen, split, encodings=list(NAMES.values()))
        return trained.examples(corpus, config=chosen)

    encoder = Encoder(trained)
    neighbours: Neighbours
    if _INDEX.value:
        neighbours = index = Index.open(cli.folder("index", _INDEX.value))
        records = Records.of_index(index, encoder.weights_sha256, examples_of)
        shown = f"{len(records)} records of {index.folder}; {index.how('image')}."
    else:
        examples = examples_of(split)
        records = Records.first(examples, _COUNT.value)
        print(f"embedding {len(records)} of {len(examples)} records of {examples.name}", flush=True)
        neighbours = Memory.embed(trained, records)
        shown = f"The first {len(records)} of {len(examples)} records of {examples.name}."
    explorer = Explorer(encoder, records, neighbours, title=str(trained), shown=shown)
    explorer.compile()
    for warning in place.warnings():
        print(f"warning: {warning}")
    place.bound.listen()  # so that what connects from here on is answered
    print(f"open http://{place.name}/?token={place.token}", flush=True)
    cookie = f"mmrl_{place.bound.getsockname()[1]}"  # browsers share cookies between ports
    app = explorer.app(place.token, hosts=place.names, cookie=cookie)
    listening.listen(
        app,
        place.bound,
        connections=4 * LIMITS.waiting,
        seconds=LIMITS.seconds,
        log=logging.WARNING,
    )


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
