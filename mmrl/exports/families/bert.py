"""BERT of transformers; the pooled feature is that of the first token, or the mean."""

from collections.abc import Mapping
from typing import Any

from mmrl.exports.families import tables
from mmrl.exports.families.base import Layout, Options

LIBRARY = "transformers"
_BLOCK = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "one": "attention.output.LayerNorm",
    "two": "output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
}
_MODULES = ("Transformer", "Pooling", "Normalize")


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`; a mean over tokens is stated as sentence-transformers does."""
    del resize
    options = tables.only(towers, "text", "transformer", "BERT of transformers")
    width, length = options["width"], options["length"]
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        **tables.sizes(options),
        "vocab_size": options["vocab_size"],
        "max_position_embeddings": length,
        "type_vocab_size": 2,
        "position_embedding_type": "absolute",
        **options.get("marks", {}),
    }
    shapes = {
        "embeddings.word_embeddings.weight": (options["vocab_size"], width),
        "embeddings.position_embeddings.weight": (length, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        **tables.norm("embeddings.LayerNorm", width),
        **tables.encoder(width, options["mlp_dim"], options["depth"], "encoder.layer.{}", _BLOCK),
    }
    mean = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    files: dict[str, Any] = {
        "modules.json": [
            {
                "idx": index,
                "name": str(index),
                "path": f"{index}_{kind}" if index else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, kind in enumerate(_MODULES)
        ],
        "1_Pooling/config.json": mean,
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
    }
    chosen = {"config.json": config, **(files if options["pool"] == "mean" else {})}
    return Layout(chosen, shapes, notes=(tables.POOLER,))
