"""The control: whole sentences change places, which keeps the meaning of the report."""

from collections import Counter

import numpy as np

from mmrl.data.perturb.report import ParsedReport
from mmrl.data.text.reports import split_sentences

_DRAWS = 8


def shuffle(report: ParsedReport, rng: np.random.Generator) -> str | None:
    """Permutes the sentences, each with its own punctuation; the white space between them stays.

    A last sentence without a full stop keeps its position, because it would otherwise run into the
    sentence after it. None when fewer than two sentences can move, or when `_DRAWS` draws only give
    texts that split into other sentences ("at 3 p.m." ends one only before a capital letter).
    """
    text = report.text
    movable = [
        (low, high)
        for low, high in report.sentences
        if text[low:high].rstrip("\"'”’)]")[-1] in ".?!"  # noqa: RUF001
    ]
    sentences = [text[low:high] for low, high in movable]
    if len({_folded(sentence) for sentence in sentences}) < 2:
        return None
    before = Counter(split_sentences(text))
    for _ in range(_DRAWS):
        parts: list[str] = []
        copied = 0
        order = rng.permutation(len(sentences)).tolist()
        for (low, high), source in zip(movable, order, strict=True):
            parts += [text[copied:low], sentences[source]]
            copied = high
        new = "".join((*parts, text[copied:]))
        # Two sentences that differ only in case may have changed places.
        if _folded(new) != _folded(text) and Counter(split_sentences(new)) == before:
            return new
    return None


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
