"""Training on the samples that a curator keeps loses little, and keeps what is rare."""

from typing import Any

import numpy as np

from benchmarks.recalls import held_out
from benchmarks.systems.check import UNTRAINED, Claim, Runs, last
from configs.systems.chexficient import RARE
from mmrl.data.batches.pipeline import Examples
from mmrl.evaluators import statistics
from mmrl.evaluators.zero_shot import ZeroShot
from mmrl.training import checkpoint, run

NUMBERS = (75,)
EXPRESSED = "a curator within the step: samples are kept by clusters, and only these are drawn"
DIFFERS = (
    "5 central samples of a cluster, for batches of 128, instead of 10; phantom tiles, on which a "
    "report that states the same counts as a match, and each kind of report alike; recall of what "
    "is rare does not rise (with one of three seeds it fell to .948 of that with all samples), and "
    "as many random samples keep nearly as much"
)
RUNS = {
    "curated": ("chexficient",),
    "all": ("chexficient:all",),
    "random": ("chexficient:all", "--config.data.train_fraction=0.25"),
    "untrained": ("chexficient", *UNTRAINED),
}
OTHERS = {"pink stain": "purple stain", "crowded pattern": "sparse pattern"}
FALSE = 0.1  # share of the tiles without a feature that are taken for tiles with it
FEW = 20  # kinds of reports with fewer tiles are left out, as their R@1 is mostly chance


def values(runs: Runs) -> dict[str, float]:
    """Shares of the samples and of rare ones; R@1 and recall of what is rare, of all runs."""
    found = {}
    for label in RUNS:
        trained = run.restore(runs[label])
        data = held_out(trained)
        found[f"R@1 {label}"], found[f"R@1 {label} permuted"] = first_matches(trained, data)
        found[f"rare {label}"], found[f"rare {label} permuted"] = rare_recall(trained, data)
    draw = last(runs["curated"])["draw"]
    kept, everything = rare_shares(run.restore(runs["curated"]))
    return found | {
        "share": draw["kept"] / draw["kept_of"],
        "R@1 of all": found["R@1 curated"] / found["R@1 all"],
        "rare of all": found["rare curated"] / found["rare all"],
        "rare over random": found["rare curated"] - found["rare random"],
        "nothing": 0.0,
        "rare kept": kept,
        "rare at random": everything,
    }


def first_matches(trained: run.Trained, data: Examples) -> tuple[float, float]:
    """How often the first retrieved states the same; and with permuted images.

    The mean over both directions, and over kinds of reports.
    """
    names = ("image.embedding", "text.embedding")
    encoded = trained.predict.encode(trained.state, data, list(names))
    images, texts = (encoded[name] for name in names)
    kinds = np.unique(data.corpus.labels, axis=0, return_inverse=True)[1].reshape(-1)
    order = statistics.permutation_between_patients(data.patients, np.random.default_rng(0))

    def share(images: np.ndarray) -> float:
        scores = images @ texts.T
        hits = [kinds[scores.argmax(axis=axis)] == kinds for axis in (0, 1)]
        common = [kind for kind in np.unique(kinds) if (kinds == kind).sum() >= FEW]
        return float(np.mean([hit[kinds == kind].mean() for hit in hits for kind in common]))

    return share(images), share(images[order])


def rare_recall(trained: run.Trained, data: Examples) -> tuple[float, float]:
    """Recall of the rare features by prompts at FALSE false positives; and with permuted images."""
    tasks = {name: _task(name, other) for name, other in OTHERS.items()}
    predict: Any = trained.predict
    asked = ZeroShot(predict, data, tasks=tasks, bootstrap=0).ranked(trained.state)["tasks"]
    order = statistics.permutation_between_patients(data.patients, np.random.default_rng(0))
    found = []
    for one in asked.values():
        scores, rare = one.scores[0], one.positive
        least = np.quantile(scores[~rare], 1 - FALSE)
        found.append([(given[rare] > least).mean() for given in (scores, scores[order])])
    own, blind = np.mean(found, axis=0).tolist()
    return own, blind


def _task(name: str, other: str) -> dict[str, Any]:
    positive, negative = (f"{one.capitalize()} is present." for one in (name, other))
    return {"positive": (positive,), "negative": (negative,), "present": (name, "")}


def rare_shares(trained: run.Trained) -> tuple[float, float]:
    """Share of the samples with a rare feature, of those that are kept and of all."""
    saved = checkpoint.Checkpoints(trained.folder, read_only=True)
    state = saved.read_arrays(["variables"])["variables"]
    kept = np.unique(state["objectives"]["curated_contrastive"]["indices"])
    corpus = run.load_corpus(trained.config, "train")
    columns = [corpus.label_names.index(name) for name in RARE]
    rare = (corpus.labels[:, columns] == 1).any(axis=1)
    return float(rare[kept[kept >= 0]].mean()), float(rare.mean())


CLAIMS = (
    Claim("share of the samples that are used", "share", most=0.3),
    Claim("rare samples among those that are kept", "rare kept", ("rare at random",)),
    Claim("R@1, as a share of that with all samples", "R@1 of all", least=0.95),
    Claim("recall of what is rare, as a share of that with all samples", "rare of all", least=0.95),
    Claim("R@1", "R@1 curated", ("R@1 curated permuted", "R@1 untrained")),
    Claim(
        "recall of what is rare, at 10 % false positives",
        "rare curated",
        ("rare curated permuted", "rare untrained"),
    ),
    Claim("the same minus that of as many random samples", "rare over random", ("nothing",)),
)
