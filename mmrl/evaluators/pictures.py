"""Pictures that evaluators share: answers against their truth, nearest neighbours, a map."""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import decomposition, manifold
from sklearn import metrics as sklearn_metrics

from mmrl.evaluators import scoring, statistics
from mmrl.evaluators.base import Figure, HeldOut, Item, Neighbours
from mmrl.evaluators.scoring import UNKNOWN, Answers
from mmrl.evaluators.truth import Facts, read_facts

MOST_CURVES = 7
"""Labels whose curves are drawn: as many as there are colours."""
MAPPED = 500
"""Embeddings that a map holds at most."""
_NEIGHBOURS, _QUERIES = 3, 4
NONE, SEVERAL, OTHERS = "no finding", "several", "others"


def of_answers(answers: Mapping[str, Answers]) -> list[Figure]:
    """ROC curves, a reliability curve of probabilities, and a confusion table of decisions.

    Args:
      answers: name -> answers; those of numbers have none of these and are left out.
    """
    from mmrl.reporting import answers as drawing

    made = []
    for name, one in answers.items():
        if one.kind == "number":
            continue
        curves, more = roc_curves(one)
        reliability = scoring.reliability(one) if one.probabilities else None
        confusion, rates = confusion_matrix(one), decisions(one)
        drawn = functools.partial(
            drawing.answers, curves=curves, reliability=reliability, confusion=confusion
        )
        if confusion is None:
            drawn = functools.partial(drawn, decisions=rates)
        caption = f"{len(one):,} items."
        if more:
            caption += f" {more} more have no curve; the table of results has all."
        if reliability:
            caption += " The area of a dot is the number of items in its bin of confidence."
        file = re.sub(r"\W+", "_", name).strip("_")
        made.append(Figure(f"answers_{file}", f"Answers: {name}", caption, drawn))
    return made


def roc_curves(answers: Answers) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """Label -> (false, true positive rates) of the most frequent ones, and how many are left out.

    Classes are asked one against all others. A label without both answers has no curve.
    """
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if answers.kind == "binary":
        pairs[answers.names[0] if answers.names else "positive"] = answers.truth, answers.scores
    else:
        for place, name in enumerate(answers.names):
            if answers.kind == "classes":
                pairs[name] = answers.truth == place, answers.scores[:, place]
            else:
                known = answers.truth[:, place] != UNKNOWN
                pairs[name] = answers.truth[known, place] == 1, answers.scores[known, place]
    asked = {n: pair for n, pair in pairs.items() if 0 < np.count_nonzero(pair[0]) < len(pair[0])}
    chosen = sorted(asked, key=lambda name: -np.count_nonzero(asked[name][0]))[:MOST_CURVES]
    curves = {name: sklearn_metrics.roc_curve(*asked[name])[:2] for name in asked if name in chosen}
    return curves, len(pairs) - len(curves)


def confusion_matrix(answers: Answers) -> tuple[tuple[str, ...], np.ndarray] | None:
    """(names, counts i64[C, C], rows are the truth) of exclusive classes; None for other kinds."""
    if answers.kind != "classes":
        return None
    count = len(answers.names)
    cells = answers.truth * count + answers.scores.argmax(axis=1)
    return tuple(answers.names), np.bincount(cells, minlength=count**2).reshape(count, count)


def decisions(answers: Answers) -> dict[str, list[int]]:
    """Label -> [found, missed, false alarm, rightly denied]; empty without a threshold."""
    if answers.threshold is None or answers.kind not in ("binary", "labels"):
        return {}
    columns = (
        [answers]
        if answers.kind == "binary"
        else [answers.column(place) for place in range(len(answers.names))]
    )
    found = {}
    for place, one in enumerate(columns):
        said, truth = one.scores > one.threshold, one.truth.astype(bool)
        parts = (said & truth, ~said & truth, said & ~truth, ~said & ~truth)
        name = one.names[0] if one.names else f"question {place + 1}"
        found[name] = [int(np.count_nonzero(part)) for part in parts]
    return found


def neighbours(
    data: HeldOut,
    rows: np.ndarray,
    images: np.ndarray,
    texts: np.ndarray,
    groups: np.ndarray,
    *,
    pixels: str,
) -> list[Neighbours]:
    """The nearest reports of some images, and the nearest images of the reports of others.

    Queries are the first ones by a hash of their ids, so that all encoders get the same.

    Args:
      data: held-out examples; `rows` i64[n] are those that embeddings are of.
      images, texts: f32[n, D], L2-normalised.
      groups: i[n]; examples of one group belong together.
      pixels: the encoding whose images are shown; one that is made of no image has no pictures.
    """
    ids = [data.ids[row] for row in rows.tolist()]
    order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())

    def item(place: int, what: str, score: float | None = None, matches: bool = False) -> Item:
        row = int(rows[place])
        shown = data.pixels(pixels, [row]) if what == "image" else None
        return Item(
            data.ids[row],
            text=data.texts[row] if shown is None else "",
            image=None if shown is None else shown[0],
            score=score,
            matches=matches,
        )

    def found(place: int, query: np.ndarray, among: np.ndarray, what: str) -> list[Item]:
        scores = among @ query
        best = np.argsort(-scores, kind="stable")[:_NEIGHBOURS]
        return [
            item(one, what, float(scores[one]), bool(groups[one] == groups[place]))
            for one in best.tolist()
        ]

    first, then = order[:_QUERIES], (order[_QUERIES : 2 * _QUERIES] or order[:_QUERIES])
    count = f"{min(_NEIGHBOURS, len(rows))} nearest of {len(rows):,}"
    chosen = "queries chosen by a hash of their ids; a green bar marks what belongs to the query."
    return [
        Neighbours(
            "reports_of_images",
            "Reports nearest to an image",
            f"{count} reports; {chosen}",
            [(item(i, "image"), found(i, images[i], texts, "text")) for i in first],
        ),
        Neighbours(
            "images_of_reports",
            "Images nearest to a report",
            f"{count} images; {chosen}",
            [(item(i, "text"), found(i, texts[i], images, "image")) for i in then],
        ),
    ]


def embedding_map(
    data: HeldOut, rows: np.ndarray, vectors: np.ndarray, *, of: str, seed: int
) -> list[Figure]:
    """Embeddings in the plane by t-SNE, coloured by what is known of the examples.

    Args:
      data: held-out examples; `rows` i64[n] are those that `vectors` f32[n, D] are of.
      of: the encoding. seed: of the start and of the drawn subset.
    """
    from mmrl.reporting import scatter

    if len(rows) < 5:
        return []
    chosen = np.arange(len(rows))
    if len(rows) > MAPPED:
        rng = statistics.generator(seed, "map")
        chosen = np.sort(rng.choice(len(rows), MAPPED, replace=False))
    wide = vectors[chosen].astype(np.float64)
    title = f"Map of {of}"
    if not np.ptp(wide, axis=0).any():
        return [Figure("map", title, f"{of} is the same everywhere.")]
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    named = labels_of(data, rows[chosen])
    caption = (
        f"{of} of {len(chosen):,} of {len(rows):,} examples, placed by t-SNE "
        f"(perplexity {perplexity:.0f}, seed {seed}). Examples that lie close together are "
        "similar; sizes of groups and distances between them mean nothing, and another seed draws "
        "another map. "
        + ("Coloured by what is known of the examples." if named else "Their labels are unknown.")
    )

    def draw(path: Path) -> None:  # by the first process alone, because it takes a second
        start = decomposition.PCA(min(30, *wide.shape), random_state=seed).fit_transform(wide)
        placing = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed, max_iter=500)
        placed = placing.fit_transform(start)
        scatter.scatter(placed, named, path, title=f"{title}, t-SNE")

    return [Figure("map", title, caption, draw)]


def labels_of(data: HeldOut, rows: np.ndarray) -> list[str]:
    """The one finding of each example, or `NONE`, `SEVERAL`, `OTHERS`; empty if none is known."""
    policy: dict[str, Any] = {}
    if (own := getattr(data, "label_policy", None)) is not None:
        policy["policy"] = own
    facts = read_facts([data.record(int(row)) for row in rows], **policy)
    named = [_label(fact) for fact in facts]
    counted = Counter(name for name in named if name not in (NONE, SEVERAL))
    # With these three there are as many as there are colours.
    kept = {NONE, SEVERAL} | {name for name, _ in counted.most_common(MOST_CURVES - 3)}
    return [name if name in kept else OTHERS for name in named]


def _label(fact: Facts) -> str:
    names = [name for name in fact.sides if not name.lower().startswith("no ")]
    return NONE if not names else names[0] if len(names) == 1 else SEVERAL
