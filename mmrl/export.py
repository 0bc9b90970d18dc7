"""Exports embeddings of records, or the encoders themselves.

embeddings writes one row per record: id, patient_id, study_id, split, image and text embedding, in
Parquet or npz shards with a manifest. A shard appears only when it is complete. If an export is
stopped, start the same command again and it continues.

encoder writes a folder that other programs load. --form=hub has safetensors, config, tokenizer and
a model card, under the names of transformers, timm or open_clip where these know the architecture;
stablehlo has programs that JAX alone runs, onnx the same for ONNX runtimes. The folder appears only
when what was written gives the same encodings.

    python -m mmrl.export embeddings --workdir=runs/pretrain --out=embeddings --split=all
    python -m mmrl.export embeddings --encoder=weights/clip --config=configs/judge.py:roco --out=e
    python -m mmrl.export encoder --workdir=runs/pretrain --out=exported
    python -m mmrl.export encoder --workdir=runs/pretrain --out=programs --form=stablehlo
"""

from typing import TYPE_CHECKING

from absl import flags

from mmrl import build, cli, opening
from mmrl.types import InputError

if TYPE_CHECKING:  # it takes seconds, which --help and refused commands do not need
    from mmrl.training.run import Trained

EMBEDDINGS, ENCODER = KINDS = ("embeddings", "encoder")
FORMATS = ("parquet", "npz")
SPLITS = ("train", "val", "test", "all")
FORMS = ("hub", "stablehlo", "onnx")
_SPLITS_OF_ALL = SPLITS[:3]

_FLAGS = cli.new_flags()
_ENCODERS = opening.Encoders(
    _FLAGS, "to use", "FILE[:VARIANT,...]: A preset whose data replace those of the run."
)
_OUT = flags.DEFINE_string("out", None, "FOLDER: Where to write. Required.", flag_values=_FLAGS)
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
    "Writes no embeddings but the folder of an encoder with weights.npz, from which towers of "
    "other runs can start.",
    flag_values=_FLAGS,
)
_SHARD_SIZE = flags.DEFINE_integer(
    "shard_size", 4096, "N: Records of a shard.", lower_bound=1, flag_values=_FLAGS
)
_FORM = flags.DEFINE_string(
    "form", "hub", f"FORM: Of an exported encoder: {', '.join(FORMS)}.", flag_values=_FLAGS
)
_FAMILY = flags.DEFINE_string(
    "family",
    "",
    "NAME: The library names that form hub has, such as clip or timm_vit; mmrl: our own. By "
    "default the first that knows the architecture.",
    flag_values=_FLAGS,
)
_PUSH = flags.DEFINE_string(
    "push",
    None,
    "OWNER/NAME: Uploads form hub to this private repository of the Hugging Face hub as well. "
    "Nothing is uploaded without it.",
    flag_values=_FLAGS,
)
# Flags that only one kind of export has.
_OWN = {
    EMBEDDINGS: ("split", "format", "names", "weights", "shard_size", "config"),
    ENCODER: ("form", "family", "push"),
}


def main(*words: str) -> None:
    """Exports embeddings or encoders; without a word, embeddings."""
    kind = words[0] if words else EMBEDDINGS
    if kind not in KINDS or len(words) > 1:
        raise InputError(build.unknown("export", " ".join(words), KINDS))
    for other in KINDS:
        for name in _OWN[other] if other != kind else ():
            if _FLAGS[name].present or (name == "config" and _FLAGS[name].value is not None):
                raise InputError(f"--{name} belongs to mmrl.export {other}; given: {kind}")
    if kind == ENCODER:
        _export_encoder()
    else:
        _export_embeddings()


def _export_embeddings() -> None:
    if _WEIGHTS.value and not _ENCODERS.is_run:
        raise InputError("--weights needs --workdir; the folder of an encoder holds its weights")
    out = cli.output("out", _OUT.value)
    for flag, value, offered in (
        ("split", _SPLIT.value, SPLITS),
        ("format", _FORMAT.value, FORMATS),
    ):
        if value not in offered:
            raise InputError(build.unknown(f"value of --{flag}", value, offered))
    from mmrl.devices import compile_cache
    from mmrl.exports import embeddings, weights
    from mmrl.training import run
    from mmrl.training.console import Console

    trained, chosen, _ = _ENCODERS.open()
    console = Console()
    if note := compile_cache.use(chosen.compile_cache):
        console.say(note)
    if _WEIGHTS.value:
        for line in _left_out(trained):
            console.say(line)
        weights.write(trained, out)
        console.say(f"encoder: {out}")
        return
    provided = trained.predict.provides
    own = tuple(name for name in provided if name.endswith(".embedding"))
    names = tuple(_NAMES.value) or own or provided
    trained.predict.check(names)
    options = embeddings.Options(_SPLIT.value, _FORMAT.value, names, _SHARD_SIZE.value)
    splits = _SPLITS_OF_ALL if options.split == "all" else (options.split,)
    whole = options.split == "all"
    read = {
        name: run.load_corpus(chosen, name, encodings=names, allow_empty=whole) for name in splits
    }
    corpora = {name: corpus for name, corpus in read.items() if len(corpus)}
    if not corpora:
        raise InputError(f"{chosen.data.source} has no usable record in any split")
    manifest = embeddings.begin(trained, corpora, out, options)
    run.check_rejects(corpora, out, chosen.data.max_reject_fraction)
    manifest = embeddings.export(trained, corpora, out, options, manifest, console)
    console.say(
        f"{sum(manifest['counts'].values())} records "
        f"in {len(manifest['shards'])} shards; manifest: {out / 'manifest.json'}"
    )


def _left_out(trained: "Trained") -> list[str]:
    """A line for each fusion, which is no part of an encoder."""
    fused = trained.predict.layout.wired.fused
    return [f"{name}: left out, because an encoder holds towers alone" for name in fused]


def _export_encoder() -> None:
    out = cli.output("out", _OUT.value)
    form = _FORM.value
    if form not in FORMS:
        raise InputError(build.unknown("value of --form", form, FORMS))
    for flag in ("family", "push"):
        if form != "hub" and _FLAGS[flag].present:
            raise InputError(f"--{flag} belongs to --form=hub; given: --form={form}")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out={out} is not empty; expected a new or empty folder")
    from mmrl.exports import folder, onnx, plan, stablehlo, upload

    if _PUSH.value:
        upload.check(_PUSH.value)
    trained = _ENCODERS.alone()
    for line in _left_out(trained):
        print(line)
    if form == "hub":
        made = plan.make(trained, _FAMILY.value)
        for line in made.lines():
            print(line)
        difference = folder.write(trained, made, out)
    else:
        programs, difference = (stablehlo if form == "stablehlo" else onnx).write(trained, out)
        print(f"programs: {', '.join(programs)}")
    print(f"encoder: {out}; read back, its encodings differ by {difference:.2g} at most")
    if _PUSH.value:
        print(f"uploaded: {upload.push(out, _PUSH.value)}")


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, positional=True)
