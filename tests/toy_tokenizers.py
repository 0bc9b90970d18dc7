"""Small tokenizers of every kind, and texts like reports for them.

`tests/golden/tokenizers` holds a vocabulary of each kind as its library writes it, and the ids that
the library gives for `TEXTS`; `tests.reference_tokenizers` has written both.
"""

import functools
import itertools

import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mmrl.data.text import tokenizer_files
from mmrl.data.text.tokenizer import Tokenizer
from tests.reference_tokenizers import GOLDEN, STORED, TEXTS, clip_file

# Texts of printable ASCII with what splits words in one tokenizer and not in another.
words = st.one_of(
    st.sampled_from(["No", "left", "1", "2.5", "C7-T1", "it's", "'re", "'S", "s", "[MASK]", "3"]),
    st.text("abcelrstvXTR019'", min_size=1, max_size=5),
)
joins = st.sampled_from(
    [*(" ",) * 3, ", ", ". ", "\n", "  ", " (", ") ", "/", " '", "' ", "'", '"', "..", "--", "_"]
    + ["<|", "|>", "[", "]", " 1. ", "\t"]
)


@st.composite
def reports(draw: st.DrawFn) -> str:
    parts = draw(st.lists(words, max_size=12))
    between = draw(st.lists(joins, min_size=len(parts) + 1, max_size=len(parts) + 1))
    return "".join(itertools.chain(*zip(between, parts, strict=False))) + between[-1]


def llama3() -> bytes:
    """A byte-level tokenizer.json with a begin mark alone and a pad token by its name only."""
    made = tokenizers.Tokenizer.from_str(read("qwen2").tokenizer.to_bytes().decode())
    made.no_padding()
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    made.add_special_tokens(names)
    template = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], made.token_to_id(names[0]))]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return made.to_str().encode()


def siglip() -> bytes:
    """A unigram tokenizer.json of sentencepiece's kind whose end mark also pads."""
    pieces = [
        "<unk>",
        "</s>",
        "\u2581",
        "\u2581left",
        "\u2581effusion",
        "\u2581no",
        "\u2581nor",
        "mal",
    ]
    letters = [chr(code) for code in range(0x21, 0x7F)]
    scores = [(piece, -float(number + 1)) for number, piece in enumerate([*pieces, *letters])]
    model = models.Unigram(scores, unk_id=0, byte_fallback=False)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["</s>", "<unk>"])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return made.to_str().encode()


@functools.cache
def read(name: str) -> tokenizer_files.TokenizerFile:
    """The tokenizer of a folder of `GOLDEN`."""
    return tokenizer_files.read(GOLDEN / name)


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    if kind in MADE:
        return Tokenizer.from_bytes(MADE[kind]())
    return read(kind).tokenizer


def _trained(model_type: str) -> bytes:
    return Tokenizer.train(TEXTS, vocab_size=500, model_type=model_type).to_bytes()


def _clip_pairs() -> bytes:
    merges = (GOLDEN / "clip" / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    return tokenizer_files.clip_pairs(clip_file(merges))


MADE = {
    "bpe": functools.partial(_trained, "bpe"),
    "unigram": functools.partial(_trained, "unigram"),
    "clip_pairs": _clip_pairs,
    "llama3": llama3,
    "siglip": siglip,
}
KINDS = (*MADE, *STORED)
BY_PARTS = ("bpe", "unigram", "clip_pairs", "bert_uncased", "bert_cased", "clip")
"""Those whose copies are put together from the ids of parts."""
