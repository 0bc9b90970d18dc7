"""A text-only baseline: an n-gram language model of the training reports.

A baseline that picks the most likely of several reports does not use the image. Questions that it
answers correctly do not show that a model relates image and report.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mmrl import sequences
from mmrl.data.perturb import parse

_BEGIN, _END = "\x02", "\x03"


def tokens(text: str) -> list[str]:
    """Case-folded words and the characters between them, without white space."""
    parsed = parse(text)
    found: list[str] = [character for character in parsed.pieces[0] if not character.isspace()]
    for key, frame in zip(parsed.keys, parsed.pieces[2::2], strict=True):
        found.append(key)
        found += [character for character in frame if not character.isspace()]
    return found


class LanguageModel:
    """Interpolated Kneser-Ney n-grams over the words and punctuation of reports.

    P(w | h) = max(c(hw) - d, 0) / c(h) + d N(h) / c(h) P(w | h'), where h' is h without its first
    word and N(h) is the number of distinct words after h. For orders below the highest, c counts
    distinct left neighbours instead of occurrences. Unigrams are interpolated with the uniform
    1 / (V + 1), where V is the vocabulary size and 1 accounts for unseen words. The discount of
    each order is d = n1 / (n1 + 2 n2), where n1 and n2 are the numbers of n-grams counted once and
    twice (Ney, Essen, Kneser 1994; Chen and Goodman 1999, eq. 14 and section 4.1.6).

    Args:
      texts: training reports.
      order: n; order 3 conditions on two words.

    Attributes:
      sha256: digest of texts and order.
    """

    def __init__(self, texts: Iterable[str], *, order: int = 3) -> None:
        texts = sequences.of(texts, "texts")
        if order < 1 or not texts:
            raise ValueError(f"order {order}, {len(texts)} texts; expected at least 1 of each")
        named = "\x00".join((str(order), *texts)).encode("utf-8", "surrogatepass")
        self.order, self.sha256 = order, hashlib.sha256(named).hexdigest()
        counts: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            padded = self._padded(text)
            counts.update(zip(*(padded[i:] for i in range(order)), strict=False))
        self._levels: list[_Level] = []
        for _ in range(order):
            self._levels.append(_Level(counts))
            # Counts distinct left neighbours: each distinct n-gram adds one.
            counts = Counter(gram[1:] for gram in counts)
        vocabulary = {gram[-1] for gram in self._levels[-1].counts}
        self._uniform = 1.0 / (len(vocabulary) + 1)
        self._known: dict[tuple[str, ...], float] = {}

    def probability(self, word: str, history: Sequence[str]) -> float:
        """P(word | last order - 1 words of history); sums to 1 over all words and one unseen word.

        Args:
          word: a token, or "" for the end of the report.
          history: tokens before it; a shorter history is padded with beginning-of-report tokens.
        """
        padded = (_BEGIN,) * (self.order - 1) + tuple(history)
        past = padded[len(padded) - (self.order - 1) :]
        return self._probability((*past, word or _END))

    def score(self, texts: Iterable[str]) -> np.ndarray:
        """Natural log-probability of each text including its end, f64[N]."""
        return np.array(
            [self._log_probability(text) for text in sequences.each(texts, "texts")], np.float64
        )

    def _padded(self, text: str) -> list[str]:
        return [_BEGIN] * (self.order - 1) + tokens(text) + [_END]

    def _log_probability(self, text: str) -> float:
        padded = self._padded(text)
        grams = zip(*(padded[i:] for i in range(self.order)), strict=False)
        return sum(math.log(self._remembered(gram)) for gram in grams)

    def _remembered(self, gram: tuple[str, ...]) -> float:
        value = self._known.get(gram)
        if value is None:
            value = self._known[gram] = self._probability(gram)
        return value

    def _probability(self, gram: tuple[str, ...]) -> float:
        value = self._uniform
        for level in reversed(self._levels):  # unigrams first
            value = level.interpolated(gram[len(gram) - level.order :], value)
        return value


class _Level:
    """Counts of the n-grams of one order, and the totals of their contexts."""

    def __init__(self, counts: Counter[tuple[str, ...]]) -> None:
        self.counts = counts
        self.order = len(next(iter(counts)))
        self.total: Counter[tuple[str, ...]] = Counter()
        self.distinct: Counter[tuple[str, ...]] = Counter()
        for gram, count in counts.items():
            self.total[gram[:-1]] += count
            self.distinct[gram[:-1]] += 1
        times = Counter(counts.values())
        # If no n-gram was counted once or none twice, the estimate would be 0 or 1.
        once, twice = max(times[1], 1), max(times[2], 1)
        self.discount = once / (once + 2 * twice)

    def interpolated(self, gram: tuple[str, ...], lower: float) -> float:
        """The smoothed probability, given the probability of the lower order."""
        context = gram[:-1]
        total = self.total.get(context)
        if not total:
            return lower
        own = max(self.counts.get(gram, 0) - self.discount, 0.0)
        return (own + self.discount * self.distinct[context] * lower) / total
