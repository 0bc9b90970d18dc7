"""Decoders of the layout of Llama (Touvron et al. 2023): Llama, Mistral, Qwen2 and NV-Embed.

They are causal and pooled at the last token. NV-Embed (Lee et al. 2024) is a Mistral that attends
in both directions, pooled by latent attention; other decoders that were trained so state is_causal
false in config.json.
"""

from collections.abc import Mapping
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
    split_layers,
)
from mmrl.models.convert.source import Source
from mmrl.types import InputError

_ENCODER = "towers/text/encoder"
_NV_EMBED = "nvembed"
_TYPES = ("llama", "mistral", "qwen2", _NV_EMBED)
_STARTS = ("embedding_model.", "model.")
_IGNORED = {
    r"lm_head\.weight": "the prediction of the next token",
    r".*\.rotary_emb\.inv_freq": "rotary frequencies, which follow from the config",
}
_LATENT = "latent_attention_model."
_LENGTH = 512
"""Most tokens of a text; these models state thousands, for which towers would be prepared."""


def recognises(source: Source) -> bool:
    """Whether the config is that of one of these decoders."""
    return source.config.get("model_type") in _TYPES


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; all else from config.json.

    Raises:
      InputError: a sliding window, or a rule for long texts that has no counterpart here.
    """
    config = source.config
    config = {**config, **config.get("text_config", {}), "model_type": config["model_type"]}
    heads, epsilon, act = images.stated(
        source, config, "num_attention_heads", "rms_norm_eps", "hidden_act"
    )
    notes = []
    length, window = config.get("max_position_embeddings", _LENGTH), _window(config)
    if window is not None and window < min(length, _LENGTH):
        raise InputError(
            f"{source.folder}/config.json: sliding_window {window}; expected attention to the "
            f"whole of a text of {min(length, _LENGTH)} tokens"
        )
    if window is not None and window < length:
        notes.append(f"beyond {window:,} tokens of a text, the source would not see all of it")
    if length > _LENGTH:
        notes.append(f"the source reads up to {length:,} tokens of a text, here {_LENGTH}")
    start = next((one for one in _STARTS if source.starts(one)), "")
    token, layers = f"{start}embed_tokens.weight", f"{start}layers"
    depth, first = images.depth(source, f"{layers}.{{}}."), f"{layers}.0"
    projections = {one: f"{first}.self_attn.{one}_proj" for one in "qkvo"}
    head_dim = source.shape(f"{projections['q']}.weight")[0] // heads
    kv_heads = source.shape(f"{projections['k']}.weight")[0] // head_dim
    biases = {
        "qkv_bias": source.has(f"{projections['q']}.bias"),
        "out_bias": source.has(f"{projections['o']}.bias"),
        "mlp_bias": source.has(f"{first}.mlp.up_proj.bias"),
    }
    theta, scaling = _rope(source, config)
    block = {
        "norm": "rms",
        "epsilon": epsilon,
        "activation": images.activation(source, act),
        "gated": True,
        **({} if kv_heads == heads else {"kv_heads": kv_heads}),
        "head_dim": head_dim,
        **biases,
        "rope_theta": theta,
        **({"rope_scaling": scaling} if scaling else {}),
    }
    pool, pool_entries = _pool(source, config)
    vocab_size, width = source.shape(token)
    options = {
        "name": "transformer",
        "vocab_size": vocab_size,
        "length": min(length, _LENGTH),
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_dim": source.shape(f"{first}.mlp.up_proj.weight")[0],
        "pool": pool,
        "causal": config["model_type"] != _NV_EMBED and config.get("is_causal") is not False,
        "positions": "none",
        "block": block,
        "heads": {
            "embedding": {"width": width, "kind": "identity"},
            "words": {"width": width, "kind": "identity"},
        },
    }
    entries = (
        same(f"{_ENCODER}/token/embedding", token),
        *(
            entry
            for index in range(depth)
            for entry in _block(
                f"{_ENCODER}/{block_path(index)}", f"{layers}.{index}", heads, kv_heads, biases
            )
        ),
        same(f"{_ENCODER}/norm/scale", f"{start}norm.weight"),
        *pool_entries,
    )
    return Conversion({"text": options}, entries, _IGNORED, notes=tuple(notes))


def _window(config: Mapping[str, Any]) -> int | None:
    """Tokens that a token sees before itself; None: all."""
    return config.get("sliding_window") if config.get("use_sliding_window", True) else None


def _rope(source: Source, config: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """Base of the wavelengths, and the rule for long texts; {}: none.

    Raises:
      InputError: another rule than that of Llama 3.
    """
    # Newer files have one mapping, older ones the base beside a mapping of the rule.
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = given.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3") or config.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"{source.folder}/config.json: rotary positions of the type {kind!r}; expected default "
            "or llama3, of all features of a head"
        )
    if kind == "default":
        return float(theta), {}
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    values = images.stated(source, given, *names)
    ours = (*names[:3], "original_max_position")
    return float(theta), dict(zip(ours, map(float, values), strict=True))


def _block(
    target: str, source: str, heads: int, kv_heads: int, biases: Mapping[str, bool]
) -> Entries:
    query, key, value, out = (f"{source}.self_attn.{one}_proj" for one in "qkvo")
    wide, gate, narrow = (f"{source}.mlp.{one}_proj" for one in ("up", "gate", "down"))
    yield same(f"{target}/attention_norm/scale", f"{source}.input_layernorm.weight")
    yield from attention(
        f"{target}/attention",
        query,
        key,
        value,
        out,
        heads=heads,
        kv_heads=kv_heads,
        bias=biases["qkv_bias"],
        out_bias=biases["out_bias"],
    )
    yield same(f"{target}/mlp_norm/scale", f"{source}.post_attention_layernorm.weight")
    yield from mlp(f"{target}/mlp", wide, narrow, gate=gate, bias=biases["mlp_bias"])


def _pool(source: Source, config: Mapping[str, Any]) -> tuple[Any, tuple[Entry, ...]]:
    """The option `pool`, and the entries of latent attention where its tensors are there."""
    if not source.starts(_LATENT):
        return "eos", ()
    attend, feed = (f"{_LATENT}cross_attend_blocks.{index}" for index in (0, 1))
    (heads,) = images.stated(source, config.get("latent_attention_config", {}), "num_cross_heads")
    inner = source.shape(f"{attend}.fn.to_q.weight")[0]
    target = f"{_ENCODER}/pooler"
    options = {
        "name": "latent_attention",
        "latents": source.shape(f"{_LATENT}latents")[0],
        "num_heads": heads,
        "head_dim": inner // heads,
        "mlp_dim": source.shape(f"{feed}.fn.net.2.weight")[1],
    }
    entries = (
        same(f"{target}/latents", f"{_LATENT}latents"),
        *norm(f"{target}/norm", f"{attend}.norm"),
        *norm(f"{target}/latent_norm", f"{attend}.norm_context"),
        *linear(f"{target}/query", f"{attend}.fn.to_q", bias=False),
        *split_layers((f"{target}/key", f"{target}/value"), f"{attend}.fn.to_kv.weight"),
        *linear(f"{target}/out", f"{attend}.fn.to_out", bias=False),
        *norm(f"{target}/mlp_norm", f"{feed}.norm"),
        # The second half of the fused layer goes through the activation.
        *split_layers(
            (f"{target}/mlp/wide", f"{target}/mlp/gate"),
            f"{feed}.fn.net.0.weight",
            f"{feed}.fn.net.0.bias",
        ),
        *linear(f"{target}/mlp/out", f"{feed}.fn.net.2"),
    )
    return options, entries
