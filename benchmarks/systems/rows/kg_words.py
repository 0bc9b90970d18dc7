"""Names that the graph links come together in the table of tokens, and others stay apart."""

import numpy as np

from benchmarks.systems.check import UNTRAINED, Claim, Runs, value
from mmrl.data.inputs.relations import Relations
from mmrl.evaluators.statistics import unit_rows
from mmrl.training import run

NUMBERS = (67,)
EXPRESSED = "a regulariser that pulls token embeddings of linked names together, beside a task"
DIFFERS = (
    "findings of phantom reports instead of six characteristics of pathology reports; a graph of "
    "our own instead of UMLS; other names are kept apart, too; distances are 1 - cosine"
)
RUNS = {
    "trained": ("kg_words",),
    "plain": ("kg_words:plain",),
    "untrained": ("kg_words", *UNTRAINED),
}


def values(runs: Runs) -> dict[str, float]:
    """Mean distances of linked and of other names, and how well findings are read."""
    found: dict[str, float] = {}
    for label in RUNS:
        linked, others = distances(run.restore(runs[label]))
        auroc = value(runs[label], "classification", "macro_auroc")
        found |= {f"linked {label}": linked, f"others {label}": others, f"auroc {label}": auroc}
    found["auroc permuted"] = value(
        runs["trained"], "classification", "macro_auroc_images_permuted"
    )
    found["others kept"] = found["others trained"] / found["others plain"]
    found["task kept"] = found["auroc trained"] / found["auroc plain"]
    return found


def distances(trained: run.Trained) -> tuple[float, float]:
    """Mean distances, 1 - cosine, of all linked and of all other pairs of names of the graph."""
    own = Relations("relations", trained.config["towers"]["text"], {"sections": ()})
    tokenizer = trained.tokenizers["text"]
    table = np.asarray(trained.state["params"]["towers"]["text"]["encoder"]["token"]["embedding"])
    means = [table[tokenizer.pieces_of(name)].mean(axis=0) for name in own.names_of_graph]
    rows = unit_rows(np.stack(means), "text.embedded", own.names_of_graph)
    apart = 1 - rows @ rows.T
    return float(apart[tuple(own.pairs.T)].mean()), float(apart[own.unlinked].mean())


CLAIMS = (
    Claim("distance of linked names", "linked trained", ("linked plain", "linked untrained"), True),
    Claim("distance of others, as a share of that without the graph", "others kept", least=0.9),
    Claim("findings read, mean AUROC", "auroc trained", ("auroc permuted", "auroc untrained")),
    Claim("the same, as a share of that without the graph", "task kept", least=0.98),
)
