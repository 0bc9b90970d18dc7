"""Vision transformers of timm (Wightman 2019), of which one tensor holds query, key and value."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmrl.models.convert import images
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.entries import (
    Entries,
    Entry,
    block_path,
    class_positions,
    fused_attention,
    linear,
    mlp,
    norm,
    patches,
    same,
    split_layers,
)
from mmrl.models.convert.source import Source
from mmrl.types import InputError

# Heads by width, of the sizes of timm: tiny, small, base, large and huge.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_EPSILON = 1e-6
_REFUSED = {
    "dist_token": "a distillation token",
    "fc_norm.weight": "a norm after the mean over patches (fc_norm)",
    "patch_embed.norm.weight": "a norm of its patches",
    "patch_embed.backbone": "a convolutional stem",
    "blocks.0.attn.q_norm.weight": "norms of queries and keys",
    "blocks.0.mlp.fc1_g.weight": "gated MLPs",
    "blocks.0.attn.rel_pos": "relative positions",
}


def recognises(source: Source) -> bool:
    """Whether tensors have the names of a ViT of timm."""
    return source.has("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; heads from the width, or config.json where it states them.

    Raises:
      InputError: as of `vision`.
    """
    config = source.config
    args = config.get("model_args") or {}
    prepared = images.preparation(source, images.HALF, images.HALF, "crop")
    options, notes, entries = vision(
        source, "", prepared, args, pool=args.get("global_pool", config.get("global_pool"))
    )
    ignored = {r"head\..*": "the classifier of its labels"}
    return Conversion({"image": options}, tuple(entries), ignored, prepared.resize, notes)


def vision(
    source: Source,
    start: str,
    prepared: images.Preparation,
    args: Mapping[str, Any],
    *,
    pool: str | None = None,
) -> tuple[dict[str, Any], tuple[str, ...], list[Entry]]:
    """Options, notes and entries of the image tower.

    Args:
      start: of the names of its tensors.
      args: arguments of the constructor in timm that the source states: num_heads, init_values,
        act_layer.
      pool: its global_pool; None: the class token, or where there is none, what the tensors show.

    Raises:
      InputError: a variant that has no counterpart here, or heads that are not known.
    """
    for name, what in _REFUSED.items():
        if source.starts(start + name):
            raise InputError(f"{source.path}: a ViT of timm with {what}; expected one without")
    width, channels, patch_size = images.patch_shape(source, f"{start}patch_embed.proj.weight")
    heads = args.get("num_heads", _HEADS.get(width))
    if heads is None:
        raise InputError(
            f"{source.path}: heads of a ViT of width {width} are not known; expected num_heads "
            f"among the model_args of config.json, or a width of {', '.join(map(str, _HEADS))}"
        )
    encoder = "towers/image/encoder"
    count = images.depth(source, f"{start}blocks.{{}}.")
    scaled = source.has(f"{start}blocks.0.ls1.gamma")
    pre_norm = source.starts(f"{start}norm_pre.")
    hidden = source.shape(f"{start}blocks.0.mlp.fc1.weight")[0]
    block: dict[str, Any] = {"epsilon": _EPSILON, "activation": _activation(source, args)}
    if scaled:
        block["layer_scale"] = float(args.get("init_values") or 1.0)
    entries = [
        *patches(
            f"{encoder}/patch",
            f"{start}patch_embed.proj",
            bias=source.has(f"{start}patch_embed.proj.bias"),
        ),
        *(norm(f"{encoder}/embedding_norm", f"{start}norm_pre") if pre_norm else ()),
        *(
            entry
            for index in range(count)
            for entry in _block(
                f"{encoder}/{block_path(index)}", f"{start}blocks.{index}", heads, scaled
            )
        ),
        *norm(f"{encoder}/norm", f"{start}norm"),
    ]
    pooled, more = _pool(source, start, width, heads, hidden, pool)
    entries += more
    size, registers, more = _positions(source, start, patch_size)
    entries += more
    options, notes = images.tower(
        source,
        prepared,
        size=size,
        channels=channels,
        heads=images.plain_heads(width),
        name="vit",
        patch_size=patch_size,
        width=width,
        depth=count,
        num_heads=heads,
        mlp_dim=hidden,
        pool=pooled,
        block=block,
        **({"embedding_norm": True} if pre_norm else {}),
        **({"registers": registers} if registers else {}),
    )
    return options, notes, entries


def _activation(source: Source, args: Mapping[str, Any]) -> str:
    return images.activation(source, args.get("act_layer") or "gelu")


def _positions(source: Source, start: str, patch_size: int) -> tuple[int, int, list[Entry]]:
    """Side of the images, number of registers, and entries of what comes before the blocks.

    The table of positions may begin with those of the class token and of the registers.
    """
    token, table, name = f"{start}cls_token", f"{start}pos_embed", f"{start}reg_token"
    encoder = "towers/image/encoder"
    has_token = source.has(token)
    registers = source.shape(name)[1] if source.has(name) else 0
    rows = source.shape(table)[1]
    before = int(has_token) + registers
    side = round((rows - before) ** 0.5)
    with_positions = side**2 == rows - before
    size = images.square(source, rows - before if with_positions else rows, patch_size)
    if not before:
        return size, 0, [same(f"{encoder}/position", table, (rows, source.shape(table)[2]))]
    entries: list[Entry] = []
    if not with_positions:  # no_embed_class of timm
        entries.append(Entry(f"{encoder}/position", (table,), lambda x: x[0]))
        if has_token:
            entries.append(Entry(f"{encoder}/cls", (token,), lambda x: x.reshape(-1)))
        if registers:
            entries.append(Entry(f"{encoder}/registers", (name,), lambda x: x[0]))
        return size, registers, entries
    if has_token and not registers:
        return size, 0, [*class_positions(encoder, token, table)]
    first = int(has_token)

    def registered(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return x[0] + rows[0, first:before]

    entries.append(Entry(f"{encoder}/registers", (name, table), registered))
    entries.append(Entry(f"{encoder}/position", (table,), lambda x: x[0, before:]))
    if has_token:
        entries.append(
            Entry(f"{encoder}/cls", (token, table), lambda x, rows: x.reshape(-1) + rows[0, 0])
        )
    return size, registers, entries


def _pool(
    source: Source, start: str, width: int, heads: int, hidden: int, stated: str | None
) -> tuple[str | dict[str, Any], list[Entry]]:
    """The option `pool` and the entries of the pooler."""
    target, name = "towers/image/encoder/pool", f"{start}attn_pool"
    has_token = source.has(f"{start}cls_token")
    if source.starts(f"{name}."):
        if has_token:
            raise InputError(
                f"{source.path}: a ViT of timm with attention pooling and a class token; expected "
                "one of them"
            )
        entries = [
            same(f"{target}/queries", f"{name}.latent", (1, width)),
            *linear(f"{target}/query", f"{name}.q"),
            *split_layers(
                [f"{target}/key", f"{target}/value"], f"{name}.kv.weight", f"{name}.kv.bias"
            ),
            *linear(f"{target}/out", f"{name}.proj"),
            *norm(f"{target}/norm", f"{name}.norm"),
            *mlp(f"{target}/mlp", f"{name}.mlp.fc1", f"{name}.mlp.fc2"),
        ]
        options = {"name": "attention", "num_heads": heads, "mlp_dim": hidden, "epsilon": _EPSILON}
        return options, entries
    if stated not in (None, "", "token" if has_token else "avg"):
        raise InputError(
            f"{source.path}: a ViT of timm with global_pool {stated!r} and "
            f"{'a' if has_token else 'no'} class token; expected "
            f"{'token' if has_token else 'avg or map'}"
        )
    return "cls" if has_token else "mean", []


def _block(target: str, source: str, heads: int, scaled: bool) -> Entries:
    own = f"{source}.attn"
    yield from norm(f"{target}/attention_norm", f"{source}.norm1")
    yield from fused_attention(
        f"{target}/attention", f"{own}.qkv.weight", f"{own}.qkv.bias", f"{own}.proj", heads=heads
    )
    yield from norm(f"{target}/mlp_norm", f"{source}.norm2")
    yield from mlp(f"{target}/mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2")
    if scaled:
        yield same(f"{target}/attention_scale", f"{source}.ls1.gamma")
        yield same(f"{target}/mlp_scale", f"{source}.ls2.gamma")
