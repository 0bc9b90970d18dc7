"""Tiny models of other libraries with their outputs, which `tests/golden/convert` holds.

    python -m tests.reference_encoders [NAME ...]

Each function of `FAMILIES` builds one model at random, writes its checkpoint as that library
does, and returns texts and what the library computes for them, `expected.npz`. All parameters are
like those of a trained model: no bias is zero, and no two scales are equal. A family of images adds
its function here or brings its own file that uses `write`.

This is a script of developers. It needs torch and transformers, which mmrl does not; tests read
only the files that it wrote.
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "convert"

# Of unequal lengths; the first is longer than a text may be, the last is empty.
TEXTS = (
    "small left pleural effusion with basal atelectasis and no right pneumothorax, heart is normal",
    "no acute findings.",
    "heart is normal",
    "left effusion, right atelectasis.",
    "xyzzy in the right lung",
    "no",
    "a lung",
    "",
)
LENGTH = 14
WIDTH, DEPTH, HEADS, HIDDEN = 24, 2, 4, 40
_WORDS = (
    "small left right pleural effusion with basal and no heart is normal acute finding ##s "
    "at ##elect ##asis pneumo ##thorax lung the in , . a ##b"
)
_SENTENCES = (
    "No acute cardiopulmonary abnormality.",
    "Small left pleural effusion with adjacent basilar atelectasis.",
    "The cardiomediastinal silhouette is within normal limits for size and contour.",
    "Interval placement of a right internal jugular central venous catheter, tip in the lower SVC.",
    "No pneumothorax.",
    "Stable 8 mm nodule in the right upper lobe, unchanged since 2012.",
    "Degenerative changes of the thoracic spine; no displaced rib fracture is identified.",
    "Increased interstitial markings, which may represent mild pulmonary oedema or fibrosis.",
    "Lungs are clear bilaterally.",
    "Patchy opacity at the left base has resolved in the interval.",
    "The endotracheal tube terminates approximately 4.2 cm above the carina.",
    "Hyperexpanded lungs with flattened diaphragms, consistent with emphysema.",
    "Heart size mildly enlarged.",
    "Calcified granuloma in the left midlung, and calcified hilar lymph nodes.",
    "XXXX-year-old male with chest pain and XXXX.",
    "Normal chest.",
)
_BERT_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PIECES = tuple("abcdefghiklmnoprstuwxyz") + (",", ".")


def trained_like(model: Any, seed: int) -> Any:
    """The model in evaluation, each parameter drawn anew from its name and the seed.

    Kernels keep the scale of their input. Scales of norms and variances lie between 0.5 and 1.5,
    all other vectors are normal with deviation 0.3, and tables with 0.5.
    """
    import torch

    arrays = {
        name: value for name, value in model.state_dict().items() if value.is_floating_point()
    }
    for name, value in arrays.items():
        rng = np.random.default_rng([seed, *name.encode()])
        kernel = value.ndim > 1 and "embedding" not in name and "embed_" not in name
        if kernel:
            drawn = rng.normal(size=value.shape) * np.prod(value.shape[1:]) ** -0.5
        elif value.ndim > 1:
            drawn = rng.normal(size=value.shape) * 0.5
        elif name.endswith(("running_var", "weight", "gamma", "lambda1")):
            drawn = rng.uniform(0.5, 1.5, value.shape)
        else:
            drawn = rng.normal(size=value.shape) * 0.3
        value.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return model.eval()


def write(name: str, expected: Mapping[str, np.ndarray]) -> None:
    """Writes what the library computes beside its checkpoint."""
    kept = {key: x.astype(np.float32) if x.dtype.kind == "f" else x for key, x in expected.items()}
    np.savez_compressed(GOLDEN / name / "expected.npz", **kept)


def begun(name: str) -> Path:
    """The empty folder of a case."""
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _encoded(
    tokenizer: Any, texts: Sequence[str] = TEXTS, length: int = LENGTH
) -> dict[str, np.ndarray]:
    """The texts, their ids i32[N, L] and their mask bool[N, L], padded at the end."""
    found = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np"
    )
    return {
        "texts": np.array(texts),
        "tokens": found["input_ids"].astype(np.int32),
        "mask": found["attention_mask"].astype(bool),
    }


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {
        "input_ids": torch.from_numpy(arrays["tokens"]).long(),
        "attention_mask": torch.from_numpy(arrays["mask"]).long(),
    }


def _mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """hidden [N, L, width], mask bool[N, L] -> the mean over tokens [N, width]."""
    return (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]


def _normalised(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --- BERT


def _bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    words = (*_BERT_MARKS, *_WORDS.split())
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"}), encoding="utf-8"
    )
    return BertTokenizer.from_pretrained(folder)


def _bert_config(**options: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(_BERT_MARKS)
        + len(_WORDS.split())
        + 3,  # some tables have rows without a word
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=LENGTH + 4,
        **options,
    )


def bert(folder: Path) -> dict[str, np.ndarray]:
    """A plain BertModel, pooled at its first token."""
    import torch
    from transformers import BertModel

    arrays = _encoded(_bert_tokenizer(folder))
    model = trained_like(BertModel(_bert_config()), 1)
    model.save_pretrained(folder)
    with torch.no_grad():
        hidden = model(**_tensors(arrays)).last_hidden_state.numpy()
    return arrays | {
        "words": hidden, "pooled": hidden[:, 0], "embedding": _normalised(hidden[:, 0])
    }  # fmt: skip


def bert_masked_language(folder: Path) -> dict[str, np.ndarray]:
    """A BertForMaskedLM with the approximate GELU: `bert.` before its names, and a head."""
    import torch
    from transformers import BertForMaskedLM

    arrays = _encoded(_bert_tokenizer(folder))
    model = trained_like(BertForMaskedLM(_bert_config(hidden_act="gelu_new")), 2)
    model.save_pretrained(folder)
    with torch.no_grad():
        hidden = model.bert(**_tensors(arrays)).last_hidden_state.numpy()
    return arrays | {
        "words": hidden, "pooled": hidden[:, 0], "embedding": _normalised(hidden[:, 0])
    }  # fmt: skip


def sentence_bert(folder: Path) -> dict[str, np.ndarray]:
    """A folder of sentence-transformers: the mean over tokens, normalised, of shorter texts."""
    import torch
    from transformers import BertModel

    arrays = _encoded(_bert_tokenizer(folder))
    model = trained_like(BertModel(_bert_config()), 3)
    model.save_pretrained(folder)
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": WIDTH,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    length = {"max_seq_length": LENGTH, "do_lower_case": False}
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps(length), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    with torch.no_grad():
        hidden = model(**_tensors(arrays)).last_hidden_state.numpy()
    pooled = _mean(hidden, arrays["mask"])
    return arrays | {"words": hidden, "pooled": pooled, "embedding": _normalised(pooled)}


def minilm(folder: Path) -> dict[str, np.ndarray]:
    """The real all-MiniLM-L6-v2 in the folder MMRL_MINILM, which is not copied.

    Its words are kept of the first texts only, as they are large.
    """
    import torch
    from transformers import AutoTokenizer, BertModel

    place = os.environ["MMRL_MINILM"]
    texts = [" ".join(_SENTENCES[: i + 1] if i < 4 else _SENTENCES[i : i + 1]) for i in range(16)]
    texts += [f"{one} {_SENTENCES[-i]}" for i, one in enumerate(_SENTENCES, 1)]
    arrays = _encoded(AutoTokenizer.from_pretrained(place), texts, 64)
    model = BertModel.from_pretrained(place).eval()
    with torch.no_grad():
        hidden = model(**_tensors(arrays)).last_hidden_state.numpy()
    pooled = _mean(hidden, arrays["mask"])
    return arrays | {"words": hidden[:3, :12], "pooled": pooled}


def cxr_bert(folder: Path) -> dict[str, np.ndarray]:
    """CXR-BERT specialized (Boecking et al. 2022): a BertForMaskedLM with a projection.

    The model is not part of transformers. Its projection of the first token is linear, GELU, layer
    norm, linear. Its file is one of torch.save, with the positions and the tied table of words.
    """
    import torch
    from transformers import BertForMaskedLM

    arrays = _encoded(_bert_tokenizer(folder))
    model = BertForMaskedLM(_bert_config())
    joint = 16
    head = torch.nn.Module()
    head.dense_to_hidden = torch.nn.Linear(WIDTH, joint)
    head.LayerNorm = torch.nn.LayerNorm(joint, eps=1e-12)
    head.dense_to_output = torch.nn.Linear(joint, joint)
    model.cls_projection_head = head
    trained_like(model, 4)
    state = model.state_dict()
    positions = torch.arange(model.config.max_position_embeddings)[None]
    torch.save(
        {"bert.embeddings.position_ids": positions} | dict(state), folder / "pytorch_model.bin"
    )
    config = model.config.to_dict() | {
        "model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": joint
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with torch.no_grad():
        hidden = model.bert(**_tensors(arrays)).last_hidden_state
        inner = head.LayerNorm(torch.nn.functional.gelu(head.dense_to_hidden(hidden[:, 0])))
        projected = head.dense_to_output(inner).numpy()
    hidden = hidden.numpy()
    return arrays | {
        "words": hidden, "pooled": hidden[:, 0], "embedding": _normalised(projected)
    }  # fmt: skip


# --- CLIP


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's byte-pair tokenizer on a small alphabet, as vocab.json and merges.txt."""
    from transformers import CLIPTokenizer

    merges = (
        "l e|le f|lef t</w>|h e|he a|hea r|hear t</w>|n o</w>|i s</w>|e f|ef f|u s|i on</w>|o n</w>"
    )
    pairs = [tuple(pair.split()) for pair in merges.split("|")]
    pieces = [*_PIECES, *(f"{piece}</w>" for piece in _PIECES)]
    pieces += dict.fromkeys("".join(pair) for pair in pairs)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8"
    )
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    marks |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(marks | {"tokenizer_class": "CLIPTokenizer"}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(folder)


def clip_text_config(tokenizer: Any, **options: Any) -> Any:
    """The configuration of a tiny text model of CLIP."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _clip_text(folder: Path, projected: bool, seed: int, **options: Any) -> dict[str, np.ndarray]:
    import torch
    import transformers

    tokenizer = clip_tokenizer(folder)
    arrays = _encoded(tokenizer)
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    config = clip_text_config(tokenizer, **options)
    model = trained_like(getattr(transformers, kind)(config), seed)
    model.save_pretrained(folder)
    with torch.no_grad():
        found = model(**_tensors(arrays))
        body = model.text_model(**_tensors(arrays)) if projected else found
    words, pooled = body.last_hidden_state.numpy(), body.pooler_output.numpy()
    embedding = found.text_embeds.numpy() if projected else pooled
    return arrays | {"words": words, "pooled": pooled, "embedding": _normalised(embedding)}


def clip_text(folder: Path) -> dict[str, np.ndarray]:
    """A CLIPTextModel: causal, with the activation QuickGELU, pooled at the end mark."""
    return _clip_text(folder, False, 5)


def clip_text_projected(folder: Path) -> dict[str, np.ndarray]:
    """A CLIPTextModelWithProjection, with exact GELU."""
    return _clip_text(folder, True, 6, hidden_act="gelu")


# --- Llama


def _decoder_tokenizer(folder: Path, begin: bool) -> Any:
    """A byte-pair tokenizer of words, with or without a begin mark, none with an end mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pairs = [("l", "e"), ("r", "i"), ("Ġ", "n"), ("Ġn", "o"), ("Ġ", "le"), ("e", "f"), ("o", "n")]
    pieces = ["<pad>", "<s>", "</s>", *_PIECES, "Ġ", *("".join(pair) for pair in pairs)]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, pairs)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    if begin:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _decoder_options(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _last(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The features of the last token of each text; the first position of an empty one."""
    return hidden[np.arange(len(hidden)), np.maximum(mask.sum(axis=1) - 1, 0)]


def _decoder(folder: Path, model: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    model.save_pretrained(folder)
    body = getattr(model, "model", model)
    with torch.no_grad():
        hidden = body(**_tensors(arrays)).last_hidden_state.numpy()
    pooled = _last(hidden, arrays["mask"])
    return arrays | {"words": hidden, "pooled": pooled, "embedding": _normalised(pooled)}


def llama(folder: Path) -> dict[str, np.ndarray]:
    """A LlamaModel with grouped queries and the rule of Llama 3 for long texts."""
    from transformers import LlamaConfig, LlamaModel

    tokenizer = _decoder_tokenizer(folder, begin=True)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    config = LlamaConfig(**_decoder_options(tokenizer), rope_parameters=rope)
    model = trained_like(LlamaModel(config), 7)
    return _decoder(folder, model, _encoded(tokenizer))


def llama_language(folder: Path) -> dict[str, np.ndarray]:
    """A LlamaForCausalLM: as many keys as queries, biases, heads wider than their share."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _decoder_tokenizer(folder, begin=True)
    options = _decoder_options(tokenizer) | {"num_key_value_heads": HEADS, "head_dim": 8}
    biases = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
    config = LlamaConfig(**options, **biases, rms_norm_eps=1e-5)
    model = trained_like(LlamaForCausalLM(config), 8)
    return _decoder(folder, model, _encoded(tokenizer))


def qwen2(folder: Path) -> dict[str, np.ndarray]:
    """A Qwen2ForCausalLM with a tied head; its texts carry no marks."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = _decoder_tokenizer(folder, begin=False)
    config = Qwen2Config(**_decoder_options(tokenizer), tie_word_embeddings=True)
    model = trained_like(Qwen2ForCausalLM(config), 9)
    arrays = _encoded(tokenizer)
    # An empty text has no token at all, and so no meaning.
    arrays = {name: value[:-1] for name, value in arrays.items()}
    return _decoder(folder, model, arrays)


def latent_attention(folder: Path) -> dict[str, np.ndarray]:
    """NV-Embed (Lee et al. 2024): a decoder without its causal mask, and latent attention.

    The model is not part of transformers. Section 3.1: the tokens are the queries of an attention
    over learned latents, followed by an MLP, both with residuals; the embedding is their mean.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import MistralConfig, MistralModel

    tokenizer = _decoder_tokenizer(folder, begin=True)
    arrays = _encoded(tokenizer)
    config = MistralConfig(
        **_decoder_options(tokenizer), sliding_window=None, attn_implementation="eager"
    )
    body = MistralModel(config)
    latents, heads, head_dim = 10, 2, 7
    linear, norm = torch.nn.Linear, torch.nn.LayerNorm

    def block(function: Any, context: bool) -> Any:
        made = torch.nn.Module()
        made.fn, made.norm = function, norm(WIDTH)
        if context:
            made.norm_context = norm(WIDTH)
        return made

    attend, feed = torch.nn.Module(), torch.nn.Module()
    attend.to_q = linear(WIDTH, heads * head_dim, bias=False)
    attend.to_kv = linear(WIDTH, 2 * heads * head_dim, bias=False)
    attend.to_out = linear(heads * head_dim, WIDTH, bias=False)
    # The module between the two has no parameters: features times the GELU of their gates.
    feed.net = torch.nn.ModuleList(
        [linear(WIDTH, 8 * WIDTH), torch.nn.Identity(), linear(4 * WIDTH, WIDTH)]
    )
    pooler = torch.nn.Module()
    pooler.latents = torch.nn.Parameter(torch.zeros(latents, WIDTH))
    pooler.cross_attend_blocks = torch.nn.ModuleList([block(attend, True), block(feed, False)])
    model = torch.nn.Module()
    model.embedding_model, model.latent_attention_model = body, pooler
    trained_like(model, 10)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "model.safetensors",
    )
    stored = {
        "model_type": "nvembed",
        "architectures": ["NVEmbedModel"],
        "text_config": config.to_dict() | {"model_type": "bidir_mistral"},
        "latent_attention_config": {
            "model_type": "latent_attention",
            "num_latents_value": latents,
            "num_cross_heads": heads,
            "cross_dim_head": head_dim,
            "hidden_dim": WIDTH,
            "latent_dim": WIDTH,
            "output_normalize": True,
        },
    }
    (folder / "config.json").write_text(json.dumps(stored, indent=2), encoding="utf-8")

    def split(x: Any) -> Any:
        return x.reshape(*x.shape[:-1], heads, head_dim).transpose(-3, -2)

    cross, wide = pooler.cross_attend_blocks
    mask = torch.from_numpy(arrays["mask"])
    with torch.no_grad():
        seen = mask[:, None, None].expand(-1, 1, LENGTH, -1)
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        x = body(_tensors(arrays)["input_ids"], attention_mask=bias).last_hidden_state
        words = x.numpy()
        query = split(attend.to_q(cross.norm(x)))
        key, value = attend.to_kv(cross.norm_context(pooler.latents)).chunk(2, dim=-1)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, split(key)[None].expand(len(x), -1, -1, -1), split(value)[None]
            .expand(len(x), -1, -1, -1),
        )  # fmt: skip
        x = x + attend.to_out(mixed.transpose(1, 2).flatten(2))
        shown, gates = feed.net[0](wide.norm(x)).chunk(2, dim=-1)
        x = x + feed.net[2](shown * torch.nn.functional.gelu(gates))
    pooled = _mean(x.numpy(), arrays["mask"])
    return arrays | {"words": words, "pooled": pooled, "embedding": _normalised(pooled)}


FAMILIES: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    made.__name__: made
    for made in (
        bert,
        bert_masked_language,
        sentence_bert,
        minilm,
        cxr_bert,
        clip_text,
        clip_text_projected,
        llama,
        llama_language,
        qwen2,
        latent_attention,
    )
}


def main(names: list[str], families: Mapping[str, Callable[[Path], Any]] = FAMILIES) -> None:
    """Writes the cases of these names, by default all."""
    absent = [one for one in ("torch", "transformers") if importlib.util.find_spec(one) is None]
    if absent:
        sys.exit(f"{' and '.join(absent)} not installed; only developers need this script")
    if unknown := set(names) - families.keys():
        sys.exit(f"unknown {', '.join(sorted(unknown))}; choices: {', '.join(families)}")
    if not names and "MMRL_MINILM" not in os.environ:
        print("MMRL_MINILM names no folder; the case minilm stays as it is")
        families = {name: made for name, made in families.items() if name != "minilm"}
    for name in names or families:
        write(name, families[name](begun(name)))
        size = sum(path.stat().st_size for path in (GOLDEN / name).rglob("*") if path.is_file())
        print(f"{name}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
