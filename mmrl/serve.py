"""Serves embeddings of images and texts over HTTP; requests that come together are batched.

    POST /embed/image   the bytes of one image, or {"images": [BASE64, ...]}
    POST /embed/text    {"texts": [TEXT, ...]}
    POST /similarity    {"images": [BASE64, ...], "texts": [TEXT, ...]}
    GET  /health, /metrics

Every request but /health needs the token, as `Authorization: Bearer TOKEN`. Without --token_file
the command makes one and prints it. SIGTERM and Ctrl-C finish what waits. docs/serving.md states
answers, refusals and limits.

    python -m mmrl.serve --workdir=runs/pretrain
    python -m mmrl.serve --encoder=weights/clip --host=0.0.0.0 --token_file=token.txt
"""

import logging

from absl import flags

from mmrl import cli, web
from mmrl.types import InputError
from mmrl.web.address import Address

_FLAGS = cli.new_flags()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "FOLDER: The run to serve. This or --encoder is required.",
    flag_values=_FLAGS,
)
_ENCODER = flags.DEFINE_string(
    "encoder",
    None,
    "FOLDER: The encoder to serve that was not trained here.",
    flag_values=_FLAGS,
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    "N: The checkpoint of the run, or best; by default the latest.",
    flag_values=_FLAGS,
)
_ADDRESS = Address(_FLAGS, port=8000)
_BODY = flags.DEFINE_integer(
    "max_body", 2**26, "BYTES: Of the body of a request.", lower_bound=1, flag_values=_FLAGS
)
_HELD = flags.DEFINE_integer(
    "max_held", 2**28, "BYTES: Of all bodies at once.", lower_bound=1, flag_values=_FLAGS
)
_PIXELS = flags.DEFINE_integer(
    "max_pixels", 2**25, "N: Pixels of an image.", lower_bound=1, flag_values=_FLAGS
)
_ITEMS = flags.DEFINE_integer(
    "max_items", 64, "N: Images or texts of a request.", lower_bound=1, flag_values=_FLAGS
)
_CHARACTERS = flags.DEFINE_integer(
    "max_characters", 20_000, "N: Characters of a text.", lower_bound=1, flag_values=_FLAGS
)
_SECONDS = flags.DEFINE_float(
    "max_seconds",
    30.0,
    "SECONDS: For a body to arrive, and then for its answer to be made.",
    lower_bound=0.001,
    flag_values=_FLAGS,
)
_WAITING = flags.DEFINE_integer(
    "max_waiting", 64, "N: Requests that are worked on or wait.", lower_bound=1, flag_values=_FLAGS
)
_BATCH_MS = flags.DEFINE_float(
    "batch_ms",
    3.0,
    "MILLISECONDS: How long the first item of a batch waits for others.",
    lower_bound=0.0,
    flag_values=_FLAGS,
)


def main() -> None:
    """Loads an encoder, compiles it for every size of batch, and listens."""
    web.check_installed()
    if bool(_WORKDIR.value) == bool(_ENCODER.value):
        given = "both" if _WORKDIR.value else "neither"
        raise InputError(f"expected --workdir=FOLDER or --encoder=FOLDER; given: {given}")
    name = "workdir" if _WORKDIR.value else "encoder"
    folder = cli.folder(name, _WORKDIR.value or _ENCODER.value)
    # These take seconds, which --help and refused commands do not need.
    from mmrl.web import listening
    from mmrl.web.limits import Limits

    place = _ADDRESS.open()
    limits = Limits(
        body=_BODY.value,
        held=_HELD.value,
        pixels=_PIXELS.value,
        items=_ITEMS.value,
        characters=_CHARACTERS.value,
        seconds=_SECONDS.value,
        waiting=_WAITING.value,
    )

    import mmrl
    from mmrl.training import checkpoint
    from mmrl.web.embedding import Embedding
    from mmrl.web.service import Service

    encoder = mmrl.load(str(folder), step=checkpoint.parse_step("--step", _STEP.value))
    embedder = Embedding(encoder)
    service = Service(
        embedder, limits, seconds=_BATCH_MS.value / 1000, facts={"step": encoder.step}
    )
    print(f"compiling for batches of {', '.join(map(str, embedder.sizes))}", flush=True)
    service.compile()
    if not place.given:
        print(f"token: {place.token}")
    for warning in place.warnings():
        print(f"warning: {warning}")
    place.bound.listen()  # so that what connects from here on is answered
    print(f"serving {folder} at http://{place.name}", flush=True)
    app = service.app(place.token)
    listening.listen(
        app,
        place.bound,
        connections=4 * limits.waiting,
        seconds=limits.seconds,
        log=logging.INFO,
    )
    print(f"stopped after {service.metrics.answered} requests", flush=True)


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
