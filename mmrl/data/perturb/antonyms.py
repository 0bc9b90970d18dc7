"""Adjectives replaced by their antonyms: the ninth perturbation of the paper.

The paper takes antonyms from WordNet, where "left" has "entered" and "clear" has "overcast" beside
what a radiologist means. Ours are chosen for radiology: descriptors of side, place, size, degree,
course and density, the groups into which RadLex (Langlotz 2006) sorts its modifiers, in the sense
in which the Fleischner Society's glossary (Hansell et al. 2008) uses them.
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
    """Every adjective that has an antonym is replaced, its "a" or "an" fitted; no randomness."""
    slots = [slot for slot, key in enumerate(report.keys) if key in ANTONYMS]
    slots = [slot for slot in slots if report.tags[slot] == "adjective"]
    if not slots:
        return None
    ends = list(itertools.accumulate(map(len, report.pieces)))
    edits: list[Edit] = []
    for slot in slots:
        antonym = ANTONYMS[report.keys[slot]]
        fitting = "an" if antonym[0] in "aeiou" else "a"
        if slot and report.keys[slot - 1] in ("a", "an") and report.pieces[2 * slot] == " ":
            article = report.words[slot - 1]
            if article.lower() != fitting:
                edits.append((ends[2 * slot - 2], ends[2 * slot - 1], like(article, fitting)))
        edits.append((ends[2 * slot], ends[2 * slot + 1], like(report.words[slot], antonym)))
    return edited(report.text, edits)
