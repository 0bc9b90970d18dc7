"""PathGen-1.6M: synthetic captions, each with its provenance, help few real ones."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, both_ways, value
from configs.systems import pathgen
from mmrl.data.reading import within
from mmrl.preparation.holdings import Holdings
from mmrl.preparation.job import Settings, prepare
from mmrl.preparation.storage import Storage
from mmrl.preparation.survey import provenance

NUMBERS = (19,)
EXPRESSED = "captions beside a corpus with their provenance; real and synthetic pairs in one run"
DIFFERS = (
    "captions are templates over labels; no model chooses patches (`data.subset` takes ids); with "
    "640 reports in place of 200, synthetic captions help prompts and not the retrieval of reports"
)
RUNS = {
    "both": ("pathgen",),
    "real": ("pathgen:real",),
    "untrained": ("pathgen", *UNTRAINED),
}

COMPARED = {
    "": ("both", ""),
    ", real alone": ("real", ""),
    ", untrained": ("untrained", ""),
    ", images permuted": ("both", "_images_permuted"),
}
"""What a value is of: a run, and the end of the name of the measure."""


def values(runs: Runs) -> dict[str, float]:
    """The share of synthetic captions with provenance, and both measures on real reports."""
    source, options = _synthetic()
    settings = Settings(Storage(size=32, format="png"), workers=0)
    prepare(source, options, runs.scratch / "out", settings, say=lambda line: None)
    captions = provenance(Holdings(str(runs.scratch / "out")))["caption"]
    found = {"provenance": captions["synthetic"] / captions["texts"], "captions": captions["texts"]}
    for label, (run, suffix) in COMPARED.items():
        found[f"AUROC{label}"] = value(runs[run], "zero_shot", f"findings/auroc{suffix}")
        found[f"R@10{label}"] = both_ways(runs[run], f"R@10{suffix}")
    return found


def _synthetic() -> tuple[str, dict[str, object]]:
    """The source of the synthetic pairs and its options, of 200 studies."""
    part = pathgen.get_config().data.parts[1]
    within.check("parts[1]", part, also=("weight",))
    options = {key: part[key] for key in part if key not in ("source", "weight")}
    options["corpus"] = {**options["corpus"], "length": 200}
    return part["source"], options


def _beside(name: str) -> tuple[str, ...]:
    return tuple(f"{name}{label}" for label in COMPARED if label)


CLAIMS = (
    Claim("share of synthetic captions whose author is known", "provenance", least=1),
    Claim("zero-shot AUROC, real and synthetic at equal steps", "AUROC", _beside("AUROC")),
    Claim("image and real report, R@10", "R@10", _beside("R@10")),
)
