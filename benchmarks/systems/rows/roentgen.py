"""RoentGen: images are scored by the findings of prompts, and the text encoder is exported."""

import csv

import cv2
import numpy as np

import mmrl
from benchmarks.recalls import held_out
from benchmarks.systems.check import UNTRAINED, Claim, Runs
from benchmarks.systems.command import Values, evaluated, execute
from mmrl.exports.load_programs import Programs

NUMBERS = (69,)
EXPRESSED = (
    "zero-shot scores of a folder of images with a table of their prompts; StableHLO programs of "
    "the text encoder, text.embedding and text.words"
)
DIFFERS = "phantoms stand for generated images; the diffusion model itself is left out"
_OTHERS = ("retrieval", "structure", "sentence_pointing")
RUNS = {"trained": ("prd",), "untrained": ("prd", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    encoder = mmrl.load(str(runs["trained"]))
    data = held_out(encoder.trained)
    folder = runs.scratch / "generated"
    folder.mkdir()
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "report", "labels"))
        for row in range(len(data)):
            record = data.record(row)
            cv2.imwrite(str(folder / f"{row}.png"), record.images[0].load())
            shown = sorted({finding.name for finding in record.findings}) or ["no finding"]
            table.writerow((f"{row}.png", data.texts[row], "|".join(shown)))
    scores = {label: _scored(runs, label) for label in RUNS}
    out = runs.scratch / "programs"
    execute(
        *("mmrl.export", "encoder", f"--workdir={runs['trained']}", f"--out={out}"),
        "--form=stablehlo",
    )
    prompts = list(data.texts[:32])
    tokens, mask = encoder.tokenize(prompts)
    programs = Programs(out)
    embedded = np.asarray(programs("text.embedding", tokens=tokens, mask=mask))
    words = np.asarray(programs("text.words", tokens=tokens, mask=mask))
    difference = np.abs(embedded - encoder.embed_texts(prompts))
    return {
        "AUROC": scores["trained"]["findings/auroc"],
        "permuted": scores["trained"]["findings/auroc_images_permuted"],
        "untrained": scores["untrained"]["findings/auroc"],
        "constant": 0.5,
        "difference": float(difference.max()),
        "finite words": float(np.isfinite(words).mean()),
        "spread": float(embedded.std(axis=0).mean()),
    }


def _scored(runs: Runs, label: str) -> Values:
    """Zero-shot values of the folder, whose prompts state the findings."""
    table = runs.scratch / "generated" / "images.csv"
    return evaluated(
        runs[label],
        runs.scratch / label,
        "--config=configs/pretrain.py:table",
        f"--config.data.path={table}",
        "--config.data.patient_column=",
        "--config.data.labels_column=labels",
        "--config.data.fractions=(0.0, 0.0, 1.0)",
        *(f"--config.evaluators.{name}=none" for name in _OTHERS),
        "--config.evaluators.zero_shot.tasks=findings",
        # A grammar makes the reports, so that a few of the prompts occur in training.
        "--config.data.waive_leaks=report 0.01 reports are made by a grammar",
        "--split=test",
    )["zero_shot"]


CLAIMS = (
    Claim(
        "findings of the prompts in the images, zero-shot AUROC",
        "AUROC",
        beside=("permuted", "untrained", "constant"),
    ),
    Claim("exported text encoder, largest difference", "difference", most=1e-5),
    Claim("exported words, share of finite numbers", "finite words", least=1),
    Claim("exported embeddings, deviation between prompts", "spread", least=1e-3),
)
