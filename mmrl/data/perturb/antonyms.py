"""Replaces adjectives by their antonyms: the ninth perturbation of the paper.

The paper takes antonyms from WordNet, which also lists senses that reports do not use: "entered"
for "left", "overcast" for "clear". The antonyms here are chosen for radiology: descriptors of side,
place, size, degree, course and density, which are the groups of modifiers in RadLex (Langlotz
2006), with the meanings of the Fleischner Society's glossary (Hansell et al. 2008).
"""

import itertools

import numpy as np

from mmrl.data.perturb.edits import Edit, edited, like
from mmrl.data.perturb.report import ParsedReport

_BOTH_WAYS = """
left right, left-sided right-sided, leftward rightward, bilateral unilateral, upper lower,
superior inferior, anterior posterior, medial lateral, proximal distal, central peripheral,
apical basilar, biapical bibasilar, small large, tiny huge, minimal extensive, mild severe,
slight marked, new old, acute chronic, recent remote, stable unstable, unchanged changed,
improved worsened, improving worsening, increased decreased, increasing decreasing,
resolved persistent, normal abnormal, unremarkable remarkable, clear opaque, sharp blunted,
focal diffuse, dense faint, well-defined ill-defined, calcified noncalcified, displaced
nondisplaced, symmetric asymmetric, enlarged shrunken, elevated depressed, high low, wide narrow,
hyperinflated hypoinflated, hyperexpanded hypoexpanded, thick thin, prominent inconspicuous,
tortuous straight, visible invisible, benign malignant, complete partial, multiple single,
intact disrupted, definite doubtful, positive negative, solid cystic, broad slender, early late,
full empty, free trapped, healed unhealed, significant insignificant, regular irregular
"""
_ONE_WAY = {
    "moderate": "minimal",
    "trace": "large",
    "massive": "tiny",
    "basal": "apical",
    "bibasal": "biapical",
    "patchy": "uniform",
    "hazy": "clear",
    "top-normal": "abnormal",
    "minor": "major",
    "dilated": "narrow",
    "ectatic": "narrow",
    "widened": "narrow",
    "rounded": "angular",
    "subtle": "obvious",
    "scattered": "clustered",
    "numerous": "few",
    "few": "numerous",
    "flattened": "domed",
    "worse": "better",
    "better": "worse",
}


def _pairs() -> dict[str, str]:
    table = dict(_ONE_WAY)
    for pair in _BOTH_WAYS.split(","):
        first, second = pair.split()
        table.setdefault(first, second)
        table.setdefault(second, first)
    return table


ANTONYMS: dict[str, str] = _pairs()
"""Adjective, lower case -> its antonym."""


def replace(report: ParsedReport, rng: np.random.Generator) -> str | None:
    """Replaces every adjective that has an antonym, and "a" or "an" before it; not random."""
    places = [place for place, key in enumerate(report.keys) if key in ANTONYMS]
    places = [place for place in places if report.tags[place] == "adjective"]
    if not places:
        return None
    ends = list(itertools.accumulate(map(len, report.pieces)))
    edits: list[Edit] = []
    for place in places:
        antonym = ANTONYMS[report.keys[place]]
        fitting = "an" if antonym[0] in "aeiou" else "a"
        if place and report.keys[place - 1] in ("a", "an") and report.pieces[2 * place] == " ":
            article = report.words[place - 1]
            if article.lower() != fitting:
                edits.append((ends[2 * place - 2], ends[2 * place - 1], like(article, fitting)))
        edits.append((ends[2 * place], ends[2 * place + 1], like(report.words[place], antonym)))
    return edited(report.text, edits)
