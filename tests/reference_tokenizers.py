"""Small vocabularies, and the ids that other libraries give with them.

    python -m tests.reference_tokenizers

Trains a vocabulary of each kind on `TEXTS`, writes it into
`tests/golden/tokenizers` as its library does, and stores the ids that transformers and open_clip
give for these texts. With MMRL_MINILM, a folder with the real all-MiniLM-L6-v2, its ids are stored
too. This is a script of developers. It needs transformers and open_clip, which mmrl does not; tests
read only the files that it wrote.
"""

import gzip
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
LENGTH = 24

_WORDS = [
    "no",
    "small",
    "left",
    "right",
    "pleural",
    "effusion",
    "pneumothorax",
    "atelectasis",
    "consolidation",
    "heart",
    "size",
    "is",
    "normal",
    "lungs",
    "are",
    "clear",
    "unchanged",
    "Stable",
    "Findings:",
    "IMPRESSION:",
    "the",
    "The",
    "patient's",
    "patient",
    "doesn't",
    "we've",
    "'stable'",
    '"clear"',
    "(2.5",
    "cm)",
    "8",
    "mm",
    "12",
    "2012",
    "C7-T1",
    "x-ray",
    "XXXX",
    "XXXX-year-old",
    "T12",
    "Dr.",
    "[MASK]",
    "e.g.",
    "SVC",
    "1.",
    "2)",
    "50%",
    "+/-",
    "<2",
    "cm",
    ">3cm",
    "and/or",
    "mid-lung;",
    "ødema",
    "café",
    "日本",
    "naïve",
    "___",
    "AP&lateral",
    "don't",
    "'S",
    "'re",
    "100,000",
    "...",
]


def _text(number: int) -> str:
    rng = np.random.default_rng([7, number])
    words = rng.choice(_WORDS, rng.integers(0, 30))
    joins = rng.choice([" ", " ", " ", " ", ", ", ". ", "\n", "  ", "/", "-", "' "], len(words))
    return "".join(itertools.chain(*zip(words, joins, strict=True)))


TEXTS = [_text(number) for number in range(200)]


def clip_file(merges: list[str]) -> bytes:
    """Byte pairs as CLIP's file holds them: some merges, filled up with pairs that no text has."""
    single = sorted(pre_tokenizers.ByteLevel.alphabet())
    seldom, own = single[-110:], set(merges)
    fillers = (f"{one} {two}{end}" for end in ("", "</w>") for one in seldom for two in single)
    fresh = (one for one in dict.fromkeys(fillers) if one not in own)
    lines = ["title", *merges, *itertools.islice(fresh, 48_894 - len(merges)), "after the last"]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_CLASSES = {
    "bert_uncased": ("BertTokenizer", {"do_lower_case": True}),
    "bert_cased": ("BertTokenizer", {"do_lower_case": False}),
    "clip": ("CLIPTokenizer", {}),
    "gpt2": ("GPT2Tokenizer", {"pad_token": "<|endoftext|>"}),
    "qwen2": ("Qwen2Tokenizer", {}),
}
STORED = tuple(_CLASSES)
_SIZE = 400


def _bert(folder: Path, lower: bool) -> None:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=_SIZE, special_tokens=_MARKS)
    made.train_from_iterator(TEXTS, trainer)
    pieces = sorted(made.get_vocab().items(), key=lambda item: item[1])
    text = "".join(f"{piece}\n" for piece, _ in pieces)
    (folder / "vocab.txt").write_text(text, encoding="utf-8")


def _pairs(folder: Path, suffix: str, special: list[str]) -> None:
    """vocab.json and merges.txt: bytes, those that end words, then what merges join."""
    ending = {"end_of_word_suffix": suffix} if suffix else {}
    made = tokenizers.Tokenizer(models.BPE(**ending))
    if suffix:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if suffix:
        splits = pre_tokenizers.Split(tokenizers.Regex(r"\s+"), "removed")
        made.pre_tokenizer = pre_tokenizers.Sequence([splits, made.pre_tokenizer])
    trainer = trainers.BpeTrainer(
        vocab_size=2 * _SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        **ending,
    )
    made.train_from_iterator(TEXTS, trainer)
    merges = [tuple(pair) for pair in json.loads(made.to_str())["model"]["merges"]][:300]
    single = sorted(pre_tokenizers.ByteLevel.alphabet())
    last = [one + suffix for one in single] if suffix else []
    pieces = dict.fromkeys([*single, *last, *map("".join, merges), *special])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def _rows(tokenizer: Any) -> dict[str, np.ndarray]:
    found = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    return {
        "tokens": found["input_ids"].astype(np.int32),
        "mask": found["attention_mask"].astype(bool),
    }


def main() -> None:
    """Writes all files."""
    import transformers

    expected: dict[str, np.ndarray] = {}

    def keep(name: str, rows: dict[str, np.ndarray]) -> None:
        expected.update({f"{name}.{key}": value for key, value in rows.items()})

    for name in STORED:
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        kind, options = _CLASSES[name]
        if kind == "BertTokenizer":
            _bert(folder, bool(options["do_lower_case"]))
        elif kind == "CLIPTokenizer":
            _pairs(folder, "</w>", ["<|startoftext|>", "<|endoftext|>"])
        else:
            _pairs(folder, "", ["<|endoftext|>"])
        config = {"tokenizer_class": kind, **options}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        keep(name, _rows(getattr(transformers, kind).from_pretrained(folder)))
    keep("clip_pairs", _open_clip())
    if place := os.environ.get("MMRL_MINILM"):
        keep("minilm", _rows(transformers.AutoTokenizer.from_pretrained(place)))
    np.savez_compressed(GOLDEN / "expected.npz", **expected)


def _open_clip() -> dict[str, np.ndarray]:
    from open_clip.tokenizer import SimpleTokenizer

    merges = (GOLDEN / "clip" / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.txt.gz"
        path.write_bytes(clip_file(merges))
        assert len(gzip.decompress(path.read_bytes()).split(b"\n")) == 48_896
        tokenizer = SimpleTokenizer(str(path))
    tokens = tokenizer(TEXTS, context_length=LENGTH).numpy().astype(np.int32)
    mask = np.arange(LENGTH) <= (tokens == tokenizer.eot_token_id).argmax(axis=1)[:, None]
    return {"tokens": tokens, "mask": mask}


if __name__ == "__main__":
    main()
