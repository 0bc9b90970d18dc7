"""Repeated images, texts and sentences of a corpus, and the false negatives that they cause."""

import collections
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from mmrl.data import corpus
from mmrl.data.overlap import duplicates
from mmrl.data.text import reports
from mmrl.preparation.holdings import Holdings
from mmrl.preparation.survey import Numbers

CHECKED = 2000
"""Greatest number of pairs of near hashes whose pixels are compared."""


def share_with_partner(groups: Sequence[Hashable], batch: int) -> float:
    """Expected share of the items of a batch that share their group with another item of it.

    The batch of B items is drawn from N items without replacement. For an item of a group of g,
    none of the g - 1 others is in the batch with probability C(N - g, B - 1) / C(N - 1, B - 1)
    (hypergeometric). The mean over all items is exact.

    Args:
      groups: the group of each of the N items.
      batch: B; values above N count as N.
    """
    count = len(groups)
    batch = min(batch, count)
    if batch < 2:
        return 0.0
    sizes = collections.Counter(collections.Counter(groups).values())  # size -> groups of it
    expected = 0.0
    for size, number in sizes.items():
        # The quotient of binomials as a product of min(g, B) - 1 factors.
        few, many = sorted((size - 1, batch - 1))
        alone = 0.0
        if few + many <= count - 1:
            alone = math.exp(sum(math.log1p(-many / (count - 1 - k)) for k in range(few)))
        expected += number * size * (1 - alone)
    return expected / count


def false_negatives(
    held: Holdings, near: duplicates.NearPairs, batch_sizes: Sequence[int]
) -> Numbers:
    """Kind of equality -> batch size -> expected share of items that equal another item.

    The items are the records with text of the train split, or of all splits where there is no train
    split.

    Args:
      near: pairs of near-duplicate composed texts.
    """
    split = "train" if "train" in held.splits else "all"
    rows = held.splits.get("train", np.arange(len(held)))
    rows = np.asarray([row for row in rows if held.composed[row]], np.int64)
    texts = [held.composed[row] for row in rows]
    studies = [held.column("study_id")[row] for row in rows]
    groups: dict[str, Sequence[Hashable]] = {
        "text": [held.canonical[row] for row in rows],
        "study": studies,
        "text_or_study": corpus.group_ids(studies, texts).tolist(),
        "nearly_text": duplicates.clusters(len(held), near)[rows].tolist(),
    }
    for name in held.sections if len(held.sections) > 1 else ():
        sections = [held.texts(name)[row] for row in rows]
        groups[f"section.{name}"] = [reports.canonical(text) for text in sections if text]
    return {
        "split": split,
        "items": {name: len(members) for name, members in groups.items()},
        "shares": {
            name: {str(size): share_with_partner(members, size) for size in batch_sizes}
            for name, members in groups.items()
            if members
        },
    }


def repeated(keys: Sequence[Hashable]) -> Numbers:
    """Number of items that share their key with another item; None and "" are no keys."""
    sizes = collections.Counter(key for key in keys if key not in (None, ""))
    many = [size for size in sizes.values() if size > 1]
    items = sum(sizes.values())
    return {
        "items": items,
        "repeated": sum(many),
        "share": sum(many) / items if items else 0.0,
        "sets": len(many),
        "largest": max(many, default=1 if items else 0),
    }


def images(held: Holdings) -> Numbers:
    """Images with equal pixels, and images that look the same, which their pixels confirm."""
    digests = held.flat("image_sha256")
    if not digests:
        return {"images": 0}
    hashes = np.asarray(held.flat("image_phash"), np.uint64)
    exact = repeated(digests)
    patients = held.column("patient_id")
    owners: dict[str, set[str]] = collections.defaultdict(set)
    for digest, row in zip(digests, held.owner.tolist(), strict=True):
        owners[digest].add(patients[row])
    exact["of_several_patients"] = sum(1 for found in owners.values() if len(found) > 1)
    pairs = duplicates.near_hashes(hashes)
    differ = np.asarray([digests[i] != digests[j] for i, j in zip(*pairs[:2], strict=True)], bool)
    first, second = pairs.first[differ], pairs.second[differ]
    chosen = np.unique(np.linspace(0, max(len(first) - 1, 0), min(CHECKED, len(first))).astype(int))
    start = np.cumsum(held.image_counts) - held.image_counts
    alike: list[tuple[int, int]] = []
    for i, j in zip(first[chosen].tolist(), second[chosen].tolist(), strict=True):
        pictures = []
        for image in (i, j):
            row = int(held.owner[image])
            pictures.append(held.image(row, image - int(start[row])))
        if duplicates.pixel_similarity(*pictures) >= duplicates.SAME_PICTURE:
            alike.append((i, j))
    ids = held.column("id")
    return {
        "images": len(digests),
        "exact": exact,
        "flat": int((hashes == duplicates.FLAT).sum()),
        "near": {
            "radius": duplicates.RADIUS,
            "candidate_pairs": len(first),
            "checked_pairs": len(chosen),
            "same_picture_pairs": len(alike),
            "images": len({image for pair in alike for image in pair}),
            "examples": [[ids[held.owner[i]], ids[held.owner[j]]] for i, j in alike[:5]],
        },
    }


def texts(held: Holdings) -> tuple[Numbers, duplicates.NearPairs]:
    """Equal and nearly equal composed texts, repeated sections, and the pairs of near texts."""
    canonical = held.canonical
    pairs = duplicates.near_texts(held.composed)
    partnered = np.union1d(pairs.first, pairs.second)
    component = duplicates.clusters(len(held), pairs)
    filled = [number for number, text in enumerate(canonical) if text]
    largest = collections.Counter(component[filled].tolist()).most_common(1)
    found: Numbers = {
        "exact": repeated(canonical),
        "near": {
            "threshold": duplicates.THRESHOLD,
            "shingle_words": duplicates.SHINGLE,
            "repeated": len(partnered),
            "share": len(partnered) / len(filled) if filled else 0.0,
            "largest": largest[0][1] if largest else 0,
        },
        "sections": {
            name: repeated([reports.canonical(text) for text in held.texts(name)])
            for name in held.known
        },
        "top": top(held.composed, canonical),
    }
    return found, pairs


def sentences(held: Holdings) -> Numbers:
    """Shares of sentences that recur in other records, and the most frequent sentences."""
    known: dict[str, str] = {}
    said: list[str] = []
    keys: list[str] = []
    owners: list[int] = []
    for row, text in enumerate(held.composed):
        for sentence in reports.split_sentences(text):
            if sentence not in known:
                known[sentence] = reports.canonical(sentence)
            if known[sentence]:
                said.append(sentence)
                keys.append(known[sentence])
                owners.append(row)
    # Only other records count: a sentence that is twice in one report does not show a template.
    records_with = collections.Counter(key for key, _ in set(zip(keys, owners, strict=True)))
    recurring = sum(1 for key in keys if records_with[key] > 1)
    unique_rows = {row for key, row in zip(keys, owners, strict=True) if records_with[key] == 1}
    total = collections.Counter(keys)
    return {
        "sentences": len(keys),
        "distinct": len(total),
        "per_record": len(keys) / len(set(owners)) if owners else 0.0,
        "recurring_share": recurring / len(keys) if keys else 0.0,
        "records_all_recurring_share": (1 - len(unique_rows) / len(set(owners)) if owners else 0.0),
        "top_100_share": (
            sum(number for _, number in total.most_common(100)) / len(keys) if keys else 0.0
        ),
        "top": top(said, keys),
    }


def top(shown: Sequence[str], keys: Sequence[str], number: int = 10) -> list[dict[str, Any]]:
    """The most frequent keys that occur more than once, each as the text of its first item."""
    first: dict[str, str] = {}
    for text, key in zip(shown, keys, strict=True):
        first.setdefault(key, text)
    found = collections.Counter(key for key in keys if key)
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:number]
    return [{"text": first[key], "count": count} for key, count in ranked if count > 1]
