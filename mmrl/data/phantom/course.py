"""Studies of a patient with a course: what is new, unchanged or resolved since the study before.

Of the three studies 3k, 3k+1 and 3k+2, the second follows the first in one patient, see
`study.patient_number`. Both show lesions of one set. For each kind of finding the course is drawn
with equal chances: it is new (in the second study alone), unchanged (in both) or resolved (in the
first alone). Thus nothing in the second image tells whether what it shows is new: only the image
or the report of the first study does.
"""

import dataclasses

from mmrl.data.phantom import grammar
from mmrl.data.phantom import study as phantom
from mmrl.data.phantom.dice import stream
from mmrl.data.phantom.findings import KINDS, Lesion
from mmrl.data.phantom.grammar import Sentence

SECTION = "comparison"
COURSES = ("new", "unchanged", "resolved")
LABELS = tuple(f"new {kind}" for kind in KINDS)

_DAY = 86_400
_SEEN = (("unchanged", "resolved"), ("unchanged", "new"))  # in the first and the second study
_WORDINGS = {
    "new": ("New {0}.", "The {0} is new.", "The {0} was not present before."),
    "unchanged": ("Unchanged {0}.", "The {0} is unchanged.", "The {0} is stable."),
    "resolved": ("Resolved {0}.", "The {0} has resolved.", "The {0} is no longer seen."),
}
_NOTHING = ("No change.", "No interval change.", "Unchanged from before.")


def study(seed: int, index: int) -> phantom.Study:
    """The study at `index`, with the section "comparison" where it follows another."""
    drawn, place = phantom.study(seed, index), index % 3
    if place == 2:
        return drawn
    both = drawn if place else phantom.study(seed, index + 1)
    course = _course(seed, index)
    lesions = tuple(one for one in both.lesions if course[one.finding.name] in _SEEN[place])
    words = stream(seed, "course report", index)
    sentences = grammar.write(lesions, drawn.patient, drawn.technique, words)
    if place:
        sentences += tuple(
            words.shuffled(
                [
                    _sentence(kind, state, both.lesions, lesions, words.pick(_WORDINGS[state]))
                    for kind, state in course.items()
                    if any(one.finding.name == kind for one in both.lesions)
                ]
            )
        ) or (Sentence(SECTION, words.pick(_NOTHING)),)
    return dataclasses.replace(drawn, lesions=lesions, sentences=sentences)


def time(seed: int, index: int) -> int:
    """Seconds since the first study of the patient."""
    if index % 3 != 1:
        return 0
    return _DAY * (1 + int(365 * stream(seed, "course time", index).unit()))


def labels(chosen: phantom.Study) -> tuple[int, ...]:
    """For each of LABELS: 1 if the finding is new, 0 if it is unchanged; -2 if it is not seen.

    A study that follows none states no label.
    """
    if chosen.index % 3 != 1:
        return (-2,) * len(LABELS)
    course = _course(chosen.seed, chosen.index)
    seen = {finding.name for finding in chosen.findings}
    return tuple(int(course[kind] == "new") if kind in seen else -2 for kind in KINDS)


def _course(seed: int, index: int) -> dict[str, str]:
    dice = stream(seed, "course", phantom.patient_number(index))
    return {kind: dice.pick(COURSES) for kind in KINDS}


def _sentence(
    kind: str, state: str, both: tuple[Lesion, ...], here: tuple[Lesion, ...], wording: str
) -> Sentence:
    sides = {one.finding.side for one in both if one.finding.name == kind}
    side = sides.pop() if len(sides) == 1 else "bilateral"
    text = " ".join(wording.format(f"{side} {kind}").split())
    states = (i for i, one in enumerate(here) if one.finding.name == kind)
    return Sentence(SECTION, text, tuple(states))
