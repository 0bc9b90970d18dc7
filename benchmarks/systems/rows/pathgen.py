"""PathGen-1.6M: synthetic captions, each with its provenance, help few real ones."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, value
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

MEASURES = {"AUROC": ("zero_shot", "findings/auroc"), "R@5": ("retrieval", "image_to_text/R@5")}


def values(runs: Runs) -> dict[str, float]:
    """The share of synthetic captions with provenance, and both measures on real reports."""
    source, options = _synthetic()
    settings = Settings(Storage(size=32, format="png"), workers=0)
    prepare(source, options, runs.scratch / "out", settings, say=lambda line: None)
    captions = provenance(Holdings(str(runs.scratch / "out")))["caption"]
    found = {"provenance": captions["synthetic"] / captions["texts"], "captions": captions["texts"]}
    for name, (evaluator, measure) in MEASURES.items():
        found[name] = value(runs["both"], evaluator, measure)
        found[f"{name}, real alone"] = value(runs["real"], evaluator, measure)
        found[f"{name}, untrained"] = value(runs["untrained"], evaluator, measure)
        permuted = f"{measure}_images_permuted"
        found[f"{name}, images permuted"] = value(runs["both"], evaluator, permuted)
    return found


def _synthetic() -> tuple[str, dict[str, object]]:
    """The source of the synthetic pairs and its options, of 200 studies."""
    part = pathgen.get_config().data.parts[1]
    within.check("parts[1]", part, also=("weight",))
    options = {key: part[key] for key in part if key not in ("source", "weight")}
    options["corpus"] = {**options["corpus"], "length": 200}
    return part["source"], options


def _beside(name: str) -> tuple[str, ...]:
    return (f"{name}, real alone", f"{name}, untrained", f"{name}, images permuted")


CLAIMS = (
    Claim("share of synthetic captions whose author is known", "provenance", least=1),
    Claim("zero-shot AUROC, real and synthetic at equal steps", "AUROC", _beside("AUROC")),
    Claim("image to real report, R@5", "R@5", _beside("R@5")),
)
