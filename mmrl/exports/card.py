"""The model card of exported encoders, written from what their run knows."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrl import build, encoder_folder
from mmrl.exports.plan import Plan
from mmrl.training import run

_USE = """\
The encoders turn biomedical images and their reports into vectors, for research: retrieval,
classification from prompts or with a few labels, grounding of phrases, and as the start of other
models. They are no medical device. Do not use them for decisions about patients.
"""
_LIMITS = """\
- Figures hold for the examples that they were computed on. Other scanners, hospitals, languages and
  populations can give others; evaluate on your own data first.
- A contrastive encoder reports similarity, not truth. Scores are no probabilities.
- Intervals are of a bootstrap over patients, and do not cover the choice of the data.
"""
_NOT_STATED = "not stated"


def text(trained: run.Trained, made: Plan, stated: Mapping[str, Any]) -> str:
    """README.md of a folder.

    Args:
      made: which library holds which tower. stated: what encoder.json holds.
    """
    licences = list(_licences(trained, stated["source"]))
    sections = {
        "Use": "".join(_loading(made)),
        "Intended use": _USE,
        "Limits": _LIMITS + "".join(f"- {line}\n" for line in _cautions(trained)),
        "Towers": _table(("tower", "encoder", "options"), _towers(made)),
        "Forms of the weights": "".join(f"- {line.strip()}\n" for line in made.lines()),
        "Data and licences": _table(("what", "value"), [*_data(trained), *licences]),
        "Figures": "".join(_figures(trained)) or "No evaluation lies in the folder of the run.\n",
        "Provenance": _table(("what", "value"), _facts(stated["source"])),
    }
    head = {
        "library_name": next(
            (part.written.library for part in made.parts if part.folder == "."), "mmrl"
        ),
        "pipeline_tag": "feature-extraction",
        "license": next((value for what, value in licences if what == "licence"), "other"),
        "tags": ["mmrl", "biomedical", *(f"{kind}-encoder" for kind in made.towers)],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines.append("# Biomedical image and report encoders\n")
    lines += [f"## {title}\n\n{content}" for title, content in sections.items()]
    return "\n".join(lines)


def _loading(made: Plan) -> Iterator[str]:
    yield '```python\nimport mmrl\n\nencoder = mmrl.load("FOLDER")\n```\n'
    for part in made.parts:
        towers = " and ".join(part.towers.values())
        folder = "FOLDER" if part.folder == "." else f"FOLDER/{part.folder}"
        call = _CALLS[part.written.library].format(folder=folder)
        yield f"\nThe tower {towers} is also loaded by {part.written.library}:\n\n"
        yield f"```python\n{call}\n```\n"


_CALLS = {
    "transformers": """\
from transformers import AutoModel

model = AutoModel.from_pretrained("{folder}")""",
    "timm": """\
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True)""",
    "open_clip": """\
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:{folder}")""",
}


def _towers(made: Plan) -> Iterator[tuple[str, str, str]]:
    for name, given in made.towers.items():
        options = {key: one for key, one in given.items() if key not in ("name", "tokenizer")}
        yield name, str(given["name"]), ", ".join(f"{k}={v}" for k, v in sorted(options.items()))


def _data(trained: run.Trained) -> Iterator[tuple[str, str]]:
    if trained.step is None:
        yield "training data", "unknown to mmrl; leaks cannot be excluded"
        return
    data = trained.config.data
    yield "training data", str(data.source)
    yield "sections of reports", ", ".join(data.sections)
    facts = getattr(build.find("source", data.source), "facts", None)
    if facts is not None:
        yield "title", str(facts.title)
        yield "address", str(facts.url)
        yield "access", str(facts.access)


def _licences(trained: run.Trained, source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of the encoders that these start from, and of the data."""
    if trained.step is None:
        yield "licence", str(source.get("license") or _NOT_STATED)
        return
    facts = getattr(build.find("source", trained.config.data.source), "facts", None)
    yield "licence of the data", str(facts.license) if facts is not None else _NOT_STATED
    for name, tower in trained.config.towers.items():
        folder = Path(tower.get("init") or "")
        if tower.get("init") and encoder_folder.is_encoder(folder):
            start = encoder_folder.read(folder).source
            yield f"licence of the start of {name}", str(start.get("license") or _NOT_STATED)


def _cautions(trained: run.Trained) -> Iterator[str]:
    """What the evaluations of a run warn of."""
    found: dict[str, None] = {}
    for _, content in _evaluations(trained):
        found |= dict.fromkeys(map(str, content.get("warnings") or ()))
        leaks = content.get("leaks") or {}
        found |= dict.fromkeys(map(str, leaks.get("not_compared") or ()))
        if "note" in leaks:
            found[str(leaks["note"])] = None
    yield from found


def _evaluations(trained: run.Trained) -> Iterator[tuple[str, dict[str, Any]]]:
    """Evaluations of this step in the folder of the run: where they lie, and their content."""
    if trained.step is None:
        return
    steps = [trained.folder / "results" / f"{trained.step:08d}.json"]
    steps += sorted(trained.folder.glob(f"evaluations/*-{trained.step:08d}/results.json"))
    for path in steps:
        if path.is_file():
            yield str(path.relative_to(trained.folder)), json.loads(path.read_text("utf-8"))


def _figures(trained: run.Trained) -> Iterator[str]:
    for where, content in _evaluations(trained):
        for name, result in content["results"].items():
            rows = [
                (key, _number(one["value"]), _interval(one), _number(one.get("chance")), one["n"])
                for key, one in result["values"].items()
                if not key.startswith("subgroup/") and "value" in one
            ]
            if rows:
                yield f"### {name}: {result['protocol']} on {result['data']['name']}\n\n"
                yield _table(("measure", "value", "95 % interval", "chance", "N"), rows)
                yield f"\nFrom `{where}`; data {result['data']['sha256'][:16]}.\n\n"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(one: Mapping[str, Any]) -> str:
    low, high = one.get("low"), one.get("high")
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _facts(source: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, str]]:
    for key, value in source.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{start}{key}.")
        elif value not in (None, ""):
            yield f"{start}{key}", str(value)


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = (" | ".join(str(one).replace("|", "\\|") for one in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)
