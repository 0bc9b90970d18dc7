"""The pictures and the page at the end of a run or an evaluation."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmrl.data.batches.pipeline import Examples
from mmrl.data.text import grounding
from mmrl.evaluators.base import Results
from mmrl.objectives.local_contrastive import word_region_attention
from mmrl.reporting import attention, bars, figures, page
from mmrl.training import scalars
from mmrl.training.run import Trained

Shown = list[tuple[str, Path | None, str]]


def write(
    folder: Path,
    trained: Trained,
    examples: Examples,
    results: Mapping[str, Results],
    *,
    title: str,
    config: Mapping[str, Any],
    leaks: Mapping[str, Any],
) -> Path:
    """Draws `folder`/figures/*.png and writes `folder`/report.html.

    All processes of a run take part, since encoding needs them all; the first one draws.

    Args:
      trained: the encoders. examples: what `results` were measured on.
      config: plain, as it shall be shown.
      leaks: what is known of held-out records seen in training, see
      `mmrl.data.overlap.leaks.summary`.

    Returns:
      Path of the report.
    """
    path = folder / "report.html"
    attended = _attended(trained, examples)
    provenance = {**trained.provenance(examples), "leaks": leaks}
    if jax.process_index() != 0:
        return path
    lines = scalars.read_lines(trained.workdir / "metrics.jsonl")
    drawn = folder / "figures"
    drawn.mkdir(parents=True, exist_ok=True)
    stored = {name: result.to_dict() for name, result in results.items()}
    shown: Shown = []
    if any(line["kind"] == "train" for line in lines):
        figures.loss_curves(lines, drawn / "loss.png")
        shown.append(("Training losses", drawn / "loss.png", "Each objective before its weight."))
    if "retrieval" in stored and any(line["kind"] == "eval" for line in lines):
        figures.retrieval_over_time(lines, drawn / "retrieval.png", results=stored["retrieval"])
        caption = "Held-out recall at 1, 5 and 10, both ways, with 95 % intervals and chance."
        shown.append(("Retrieval over time", drawn / "retrieval.png", caption))
    _structure(drawn, stored.get("structure"), shown)
    pointed = _attention(drawn, attended, examples, shown)
    if pointed is not None and "pointing" not in stored:
        stored["word_attention"] = pointed
    page.write_report(
        path,
        title=title,
        summary=_summary(results),
        results=stored,
        figures=shown,
        config=config,
        provenance=provenance,
    )
    return path


def _structure(drawn: Path, stored: Mapping[str, Any] | None, shown: Shown) -> None:
    """One picture for each protocol of perturbed-report choice."""
    if stored is None:
        return
    for name, protocol in stored["details"]["protocols"].items():
        title = f"Perturbed-report choice: structure/{name}"
        if not protocol["questions"]:
            why = "; ".join(f"{reason} ({n})" for reason, n in protocol["excluded"].items())
            shown.append((title, None, f"No question could be asked: {why}."))
            continue
        path = drawn / f"structure_{name.replace('@', '_v')}.png"
        bars.structure_per_kind(stored, name, path)
        caption = (
            f"{protocol['about'].capitalize()}. What the hatched bars reach was won without the "
            "right image, or without any; only the rest shows that the image was read."
        )
        shown.append((title, path, caption))


def _attended(trained: Trained, examples: Examples) -> list[attention.AttentionExample] | None:
    """Maps of words over regions; None where no objective taught words to look."""
    options = trained.config.objectives.get("local_contrastive")
    if options is None:
        return None
    temperature = float((options.get("temperatures") or (4.0,))[0])
    attend = functools.partial(word_region_attention, temperature=temperature)
    chosen = grounding.select_examples(examples, examples.tokenizer.words, count=200)
    return attention.attend(
        trained.predict,
        trained.state,
        examples,
        chosen,
        attention=lambda *arrays: np.asarray(attend(*arrays)),
        grid=trained.predict.grid,
        geometry=examples.preprocess.geometry,
    )


def _attention(
    drawn: Path,
    attended: list[attention.AttentionExample] | None,
    examples: Examples,
    shown: Shown,
) -> dict[str, Any] | None:
    """Draws six studies; answers how often the words of many more point into their boxes."""
    title = "Attention of words over regions"
    if attended is None:
        why = "No local_contrastive objective was trained, so words have no attention to show."
        shown.append((title, None, why))
        return None
    if not attended:
        shown.append((title, None, "No held-out report has a word to look for."))
        return None
    figures.attention_grid(attended[:6], drawn / "attention.png")
    caption = "Held-out studies; the frame is the true box of the finding, where it is known."
    shown.append((title, drawn / "attention.png", caption))
    return attention.pointing(attended, examples).to_dict()


def _summary(results: Mapping[str, Results]) -> list[tuple[str, Any, str]]:
    """The headline rows: what the reader wants first, beside what it must be held against."""
    rows: list[tuple[str, Any, str]] = []
    for name, key, note in (
        ("retrieval", "image_to_text/R@1", "image finds its report"),
        ("retrieval", "text_to_image/R@1", "report finds its image"),
        ("structure", "order-10way@1/accuracy", "true report among nine rearranged copies"),
        ("structure", "order-10way@1/grounded_gain", "what of it the right image contributed"),
        ("structure", "clinical@1/accuracy", "true report against one with a fact reworded"),
        ("structure", "clinical@1/accuracy_text_only", "the same, by an n-gram model of texts"),
        ("structure", "clinical@1/grounded_gain", "what of it the right image contributed"),
    ):
        if name in results and key in results[name].values:
            rows.append((f"{name}/{key}", str(results[name].values[key]), note))
    return rows
