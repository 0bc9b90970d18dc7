"""BERT and its relatives (Devlin et al. 2019): PubMedBERT, BioLinkBERT, BioClinicalBERT, CXR-BERT.

Folders of sentence-transformers are read as well: their files say how tokens are pooled, and how
many a text has at most. CXR-BERT specialized (Boecking et al. 2022) has a head of its own; all
others have the normalised pooled feature as their embedding.
"""

from typing import Any

from mmrl.models.convert import images
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.entries import (
    Entries,
    Entry,
    attention,
    block_path,
    linear,
    mlp,
    norm,
    same,
)
from mmrl.models.convert.source import Source
from mmrl.types import InputError

_TOWER = "towers/text"
_TYPES = ("bert", "cxr-bert")
_PROJECTION = "cls_projection_head"
_IGNORED = {
    r"(bert\.)?pooler\..*": "a layer of its pretraining; the pooled feature is that of the tokens",
    r"cls\..*": "the head that predicted masked words or the next sentence",
    r"(bert\.)?embeddings\.position_ids": "numbers from 0 on",
    r"(classifier|qa_outputs)\..*": "the classifier of another task",
}
# Pooling of sentence-transformers -> ours.
_POOLS = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "eos"}
_MODULES = ("Transformer", "Pooling", "Normalize")


def recognises(source: Source) -> bool:
    """Whether the config is that of a BERT; older ones do not say so, but the tensors do."""
    if "model_type" in source.config:
        return source.config["model_type"] in _TYPES
    name = "embeddings.token_type_embeddings.weight"
    return bool(source.config) and (source.has(name) or source.has(f"bert.{name}"))


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; heads, epsilon and activation from config.json.

    Raises:
      InputError: positions other than learned ones, a decoder, or modules or pooling of
        sentence-transformers without a counterpart here.
    """
    config = source.config
    _check(source, config)
    start = "bert." if source.starts("bert.") else ""
    pool, length, notes = _sentence_transformers(source)
    entries, encoder = bert(
        source,
        start,
        length=length,
        heads=images.stated(source, config, "num_attention_heads")[0],
        epsilon=config.get("layer_norm_eps", 1e-12),
        activation=images.activation(source, config.get("hidden_act", "gelu")),
    )
    width = encoder["width"]
    embedding: dict[str, Any] = {"width": width, "kind": "identity"}
    if source.starts(_PROJECTION):
        hidden, _ = source.shape(f"{_PROJECTION}.dense_to_hidden.weight")
        out, _ = source.shape(f"{_PROJECTION}.dense_to_output.weight")
        embedding = {"width": out, "kind": "mlp", "hidden": hidden, "norm": True, "epsilon": 1e-12}
        entries += tuple(_projection())
    heads = {"embedding": embedding, "words": {"width": width, "kind": "identity"}}
    options = {**encoder, "pool": pool, "heads": heads}
    return Conversion({"text": options}, entries, _IGNORED, notes=notes)


def bert(
    source: Source,
    start: str,
    *,
    heads: int,
    epsilon: float,
    activation: str,
    length: int | None = None,
) -> tuple[tuple[Entry, ...], dict[str, Any]]:
    """The entries of the encoder, and its options.

    Args:
      start: of the names of its tensors, with a full stop or empty.
      length: most tokens of a text; None: as many as there are positions.
    """
    embeddings, layers = f"{start}embeddings", f"{start}encoder.layer"
    table, types = f"{embeddings}.position_embeddings.weight", f"{embeddings}.token_type_embeddings"
    encoder = f"{_TOWER}/encoder"
    vocabulary, width = source.shape(f"{embeddings}.word_embeddings.weight")
    depth = images.depth(source, f"{layers}.{{}}.")
    length = min(length or source.shape(table)[0], source.shape(table)[0])
    options = {
        "name": "transformer",
        "vocab_size": vocabulary,
        "length": length,
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_dim": source.shape(f"{layers}.0.intermediate.dense.weight")[0],
        "embedding_norm": True,
        "final_norm": False,
        "block": {"order": "post", "epsilon": epsilon, "activation": activation},
    }
    entries = (
        same(f"{encoder}/token/embedding", f"{embeddings}.word_embeddings.weight"),
        # Every text is a first segment, whose vector each of its tokens gets.
        Entry(
            f"{encoder}/position",
            (table, f"{types}.weight"),
            lambda rows, of: (rows + of[0])[:length],
        ),
        *_norm(source, f"{encoder}/embedding_norm", f"{embeddings}.LayerNorm"),
        *(
            entry
            for index in range(depth)
            for entry in _block(
                source, f"{encoder}/{block_path(index)}", f"{layers}.{index}", heads
            )
        ),
    )
    return entries, options


def _block(source: Source, target: str, name: str, heads: int) -> Entries:
    own = f"{name}.attention"
    query, key, value = (f"{own}.self.{one}" for one in ("query", "key", "value"))
    yield from attention(
        f"{target}/attention", query, key, value, f"{own}.output.dense", heads=heads
    )
    yield from _norm(source, f"{target}/attention_norm", f"{own}.output.LayerNorm")
    yield from mlp(f"{target}/mlp", f"{name}.intermediate.dense", f"{name}.output.dense")
    yield from _norm(source, f"{target}/mlp_norm", f"{name}.output.LayerNorm")


def _norm(source: Source, target: str, name: str) -> Entries:
    """Layer norm, whose parameters are gamma and beta in files that began as TensorFlow's."""
    if not source.has(f"{name}.gamma"):
        yield from norm(target, name)
    else:
        yield same(f"{target}/scale", f"{name}.gamma")
        yield same(f"{target}/bias", f"{name}.beta")


def _projection() -> Entries:
    target = f"{_TOWER}/heads/embedding"
    yield from linear(f"{target}/wide", f"{_PROJECTION}.dense_to_hidden")
    yield from norm(f"{target}/norm", f"{_PROJECTION}.LayerNorm")
    yield from linear(f"{target}/out", f"{_PROJECTION}.dense_to_output")


def _check(source: Source, config: dict[str, Any]) -> None:
    kind = config.get("position_embedding_type") or "absolute"
    if kind != "absolute" or config.get("is_decoder"):
        raise InputError(
            f"{source.folder}/config.json: position_embedding_type {kind!r}, is_decoder "
            f"{bool(config.get('is_decoder'))}; expected absolute positions and no decoder"
        )


def _sentence_transformers(source: Source) -> tuple[str, int | None, tuple[str, ...]]:
    """Pool and length as the files of sentence-transformers say, and notes.

    Without these files, the class token is pooled, and the length is None.
    """
    stated = source.json("sentence_bert_config.json")
    length, notes = stated.get("max_seq_length"), []
    if length:
        notes.append(f"texts have at most {length} tokens, as in sentence-transformers")
    if stated.get("do_lower_case"):
        notes.append("sentence-transformers makes letters small before the tokenizer; not here")
    modules = _modules(source)
    file = f"{modules.get('Pooling', '1_Pooling')}/config.json"
    pooling = source.json(file)
    if not pooling and not modules:
        return "cls", length, tuple(notes)
    chosen = [
        name.removeprefix("pooling_mode_")
        for name, value in pooling.items()
        if value is True and name.startswith("pooling_mode_")
    ]
    if len(chosen) != 1 or chosen[0] not in _POOLS:
        raise InputError(
            f"{source.folder}/{file} chooses {', '.join(chosen) or 'nothing'}; expected one of: "
            f"{', '.join(_POOLS)}"
        )
    return _POOLS[chosen[0]], length, tuple(notes)


def _modules(source: Source) -> dict[str, str]:
    """Kind of each module of sentence-transformers -> its folder; empty without modules.json.

    Raises:
      InputError: a module without a counterpart here, or in a folder elsewhere.
    """
    found = {}
    for module in source.json_list("modules.json"):
        kind, folder = str(module.get("type")).rsplit(".", 1)[-1], str(module.get("path", ""))
        if kind not in _MODULES or folder == ".." or {"/", "\\"} & set(folder):
            raise InputError(
                f"{source.folder}/modules.json: the module {kind} in {folder!r}; expected "
                f"{', '.join(_MODULES)}, each in a folder beside the weights"
            )
        found[kind] = folder
    return found
