"""Poolers that others publish: the names of their tensors in PyTorch, as parameters of ours.

Each function maps tensors by name to the parameters of a module as a nested dict, and the options
that the module needs to hold them. Names may carry a common prefix, such as "wsi_embedders.".

    options, params = madeleine(tensors)
    pooler = GatedAttention(**options, grid=(1, 1), dtype=..., param_dtype=..., rngs=...)
    nnx.update(pooler, params)
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmrl.models.convert.entries import Entry, attention, linear, mlp, norm, same
from mmrl.types import InputError

Tensors = Mapping[str, np.ndarray]
Converted = tuple[dict[str, Any], dict[str, Any]]
"""Options of the module, and its parameters."""


def biovil_t(tensors: Tensors, *, num_heads: int = 8) -> Converted:
    """`VisionTransformerPooler` of hi-ml -> `mmrl.models.pool.temporal.Temporal`.

    Its positions are computed; a tensor `pos_embed` is not used.

    Raises:
      InputError: tensors that are missing, or that this module does not have.
    """
    tensors = _within(tensors, "type_embed")
    tensors = {name: value for name, value in tensors.items() if name != "pos_embed"}
    depth = _count(tensors, r"blocks\.(\d+)\.norm1\.weight")
    entries = [_rows("types", "type_embed"), *norm("norm", "norm_post")]
    for index in range(depth):
        ours, theirs = f"block_{index:02d}", f"blocks.{index}"
        entries += norm(f"{ours}/attention_norm", f"{theirs}.norm1")
        query, key, value, out = (f"{theirs}.attn.proj{end}" for end in ("_q", "_k", "_v", ""))
        entries += attention(
            f"{ours}/attention", query, key, value, out, heads=num_heads, bias=False
        )
        entries += norm(f"{ours}/mlp_norm", f"{theirs}.norm2")
        entries += mlp(f"{ours}/mlp", f"{theirs}.mlp.fc1", f"{theirs}.mlp.fc2")
    params = _made("VisionTransformerPooler", tensors, entries)
    width, mlp_dim = params["block_00"]["mlp"]["wide"]["kernel"].shape
    options = {"width": width, "num_heads": num_heads, "depth": depth, "mlp_dim": mlp_dim}
    return options, params


def biovil_t_fusion(tensors: Tensors, *, num_heads: int = 8) -> Converted:
    """`MultiImageEncoder` of hi-ml without its backbone -> the fusion `temporal`, without heads.

    Of the tensors, those of `backbone_to_vit`, `vit_pooler` and `missing_previous_emb` are read.

    Raises:
      InputError: as of `biovil_t`.
    """
    tensors = _within(tensors, "missing_previous_emb")
    own = ("backbone_to_vit.weight", "missing_previous_emb")
    entries = [
        *linear("static", "backbone_to_vit", bias=False),
        same("missing", "missing_previous_emb", (-1,)),
    ]
    params = _made("MultiImageEncoder", {k: v for k, v in tensors.items() if k in own}, entries)
    start = "vit_pooler."
    inner = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    options, params["temporal"] = biovil_t(inner, num_heads=num_heads)
    return options, params


def madeleine(tensors: Tensors) -> Converted:
    """`ABMILEmbedder` of Madeleine -> `mmrl.models.pool.gated_attention.GatedAttention`.

    Raises:
      InputError: tensors that are missing, or that this module does not have.
    """
    tensors = _within(tensors, "pre_attn.0.weight")
    heads = _count(tensors, r"attn\.(\d+)\.attention_c\.weight")
    places = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("pre_attn.")})
    linears = [place for place in places if np.ndim(tensors[f"pre_attn.{place}.weight"]) == 2]
    entries: list[Entry] = []
    for index, place in enumerate(linears):
        entries += linear(f"layer_{index:02d}", f"pre_attn.{place}")
        entries += norm(f"norm_{index:02d}", f"pre_attn.{place + 1}")
    entries += _gated([f"attn.{head}" for head in range(heads)])
    params = _made("ABMILEmbedder", tensors, entries)
    options = _sizes(params, heads)
    return {**options, "layers": len(linears), "activation": "gelu", "norm": True}, params


def clam(tensors: Tensors) -> Converted:
    """`Attn_Net_Gated`, or the attention of `CLAM_SB` or `CLAM_MB` -> `GatedAttention`.

    With the first layer of the latter, `attention_net.0`, the module has one layer with ReLU. The
    classifiers are no part of the pooler: `classifiers` and `instance_classifiers` are not used.

    Raises:
      InputError: tensors that are missing, or that this module does not have.
    """
    kept = {k: v for k, v in tensors.items() if not re.match(r"(instance_)?classifiers\.", k)}
    whole = any(name.startswith("attention_net.") for name in kept)
    if not whole:
        entries, start = [], ""
        tensors = _within(kept, "attention_c.weight")
    else:
        tensors, entries = kept, [*linear("layer_00", "attention_net.0")]
        (start,) = {n.removesuffix("attention_c.weight") for n in kept if "attention_c.weight" in n}
    entries += _gated([start.removesuffix(".")])
    params = _made("CLAM_SB" if whole else "Attn_Net_Gated", tensors, entries)
    options = _sizes(params, 1)
    return {**options, "layers": int(whole), "activation": "relu", "norm": False}, params


def _gated(sources: list[str]) -> Iterable[Entry]:
    """The gated attention of each head, stacked."""
    for part, layer in (("content", "a.0"), ("gate", "b.0"), ("score", "c")):
        names = [f"{source}.attention_{layer}".removeprefix(".") for source in sources]
        yield Entry(
            f"{part}/kernel",
            tuple(f"{name}.weight" for name in names),
            lambda *weights: np.stack([x.T for x in weights]),
        )
        yield Entry(
            f"{part}/bias", tuple(f"{name}.bias" for name in names), lambda *rows: np.stack(rows)
        )


def _sizes(params: Mapping[str, Any], heads: int) -> dict[str, int]:
    """Options of GatedAttention that follow from the shapes of its parameters."""
    _, inner, hidden = params["content"]["kernel"].shape
    has_layers = "layer_00" in params
    width = params["layer_00"]["kernel"].shape[0] if has_layers else inner * heads
    branches = params["score"]["kernel"].shape[-1]
    features = inner if has_layers else 0
    return {
        "width": width,
        "heads": heads,
        "branches": branches,
        "hidden": hidden,
        "features": features,
    }


def _rows(target: str, source: str) -> Entry:
    """[rows, 1, width] -> [rows, width]."""
    return Entry(target, (source,), lambda x: x.reshape(len(x), -1))


def _count(tensors: Tensors, pattern: str) -> int:
    """How many tensors have names of a pattern that numbers them from 0."""
    return len([name for name in tensors if re.fullmatch(pattern, name)])


def _within(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
    """The tensors below the prefix that `name` has, without it."""
    starts = [one.removesuffix(name) for one in tensors if one == name or one.endswith(f".{name}")]
    if len(starts) != 1:
        raise InputError(
            f"{len(starts)} tensors named {name} among {len(tensors)}; expected one, with or "
            "without a prefix"
        )
    start = starts[0]
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _made(owner: str, tensors: Tensors, entries: Iterable[Entry]) -> dict[str, Any]:
    """Parameters as a nested dict.

    Raises:
      InputError: tensors that are missing or left over, by name.
    """
    entries = list(entries)
    used = dict.fromkeys(name for entry in entries for name in entry.sources)
    for what, names in (
        ("missing", [name for name in used if name not in tensors]),
        ("of no use here", [name for name in tensors if name not in used]),
    ):
        if names:
            raise InputError(f"{owner}: {len(names)} tensors are {what}: {', '.join(names)}")
    params: dict[str, Any] = {}
    for entry in entries:
        *folders, last = entry.target.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        arrays = (np.asarray(tensors[name], np.float32) for name in entry.sources)
        place[last] = entry.make(*arrays)
    return params
