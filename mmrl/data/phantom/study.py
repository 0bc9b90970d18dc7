"""The phantom corpus: procedural frontal chest radiographs with reports and exact truth.

`study(seed, index)` draws the patient, the findings and the report. `render`, `masks` and `boxes`
draw the image and its truth at any size. Results depend on seed, index and size only. The corpus
lets anyone test the software without data; results on it are no clinical evidence.

Anatomy is in `anatomy` and `canvas`, findings are in `findings` and `paint`, reports in `grammar`.
`lateral` draws a second projection of a study, `slices` a stack of sections, `course` a later study
of a patient; `vector` computes a vector from the findings of a study.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mmrl.data.phantom import anatomy, grammar
from mmrl.data.phantom import findings as phantom_findings
from mmrl.data.phantom import paint as phantom_paint
from mmrl.data.phantom.canvas import Canvas, draw_normal
from mmrl.data.phantom.dice import stream
from mmrl.data.phantom.findings import KINDS, WITHOUT_SIDE, Lesion
from mmrl.data.phantom.grammar import Sentence
from mmrl.types import Box, Finding

LABELS = KINDS


def sided_label(name: str, side: str) -> str:
    """The label of a finding on one side: "left nodule"."""
    return f"{side} {name}"


SIDED_LABELS = tuple(
    sided_label(name, side) for name in KINDS if name not in WITHOUT_SIDE for side in anatomy.SIDES
)


@dataclasses.dataclass(frozen=True)
class Study:
    """One study without its pixels.

    Attributes:
      lesions: the findings with their shapes, in the order of LABELS.
      sentences: those of the section findings, then that of the impression.
    """

    seed: int
    index: int
    patient: anatomy.Patient
    technique: anatomy.Technique
    lesions: tuple[Lesion, ...]
    indication: str
    sentences: tuple[Sentence, ...]

    @property
    def patient_id(self) -> str:
        """Unique within a seed; shared by the studies of one patient."""
        return f"{self.seed}-{self.patient.number}"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """(finding, side, zone, severity) of each lesion."""
        return tuple(lesion.finding for lesion in self.lesions)

    @property
    def labels(self) -> tuple[int, ...]:
        """1 or 0 for each of LABELS."""
        present = {finding.name for finding in self.findings}
        return tuple(int(name in present) for name in LABELS)

    @property
    def sided_labels(self) -> tuple[int, ...]:
        """1 or 0 for each of SIDED_LABELS."""
        present = {sided_label(finding.name, finding.side) for finding in self.findings}
        return tuple(int(name in present) for name in SIDED_LABELS)

    def section(self, name: str) -> str:
        """The text of "findings" or "impression"."""
        return " ".join(s.text for s in self.sentences if s.section == name)

    def frame(self) -> anatomy.Frame:
        """The anatomy in the image. An enlarged heart is part of it."""
        enlarged = [f.severity for f in self.findings if f.name == "cardiomegaly"]
        return anatomy.Frame(self.patient, self.technique, "".join(enlarged))


def patient_number(index: int) -> int:
    """Studies 3k and 3k+1 belong to one patient, 3k+2 to another."""
    return index // 3 * 2 + index % 3 // 2


def study(seed: int, index: int) -> Study:
    """The study at `index` of the corpus of `seed`, which has no end.

    Studies of a patient share the anatomy; exposure, findings and report are drawn for each.
    """
    number = patient_number(index)
    patient = anatomy.draw_patient(number, stream(seed, "patient", number))
    dice = stream(seed, "study", index)
    kinds = phantom_findings.draw_kinds(dice)
    bedside = "endotracheal tube" in kinds
    technique = anatomy.draw_technique(dice, bedside=bedside)
    lesions = phantom_findings.draw_lesions(kinds, patient, technique, dice)
    words = stream(seed, "report", index)
    return Study(
        seed=seed,
        index=index,
        patient=patient,
        technique=technique,
        lesions=lesions,
        indication=grammar.indication(patient, words),
        sentences=grammar.write(lesions, patient, technique, words),
    )


def render(chosen: Study, size: int) -> np.ndarray:
    """Draws the radiograph, u8[size, size]; the patient's left is at the right of the image."""
    canvas = Canvas(chosen.frame(), size)
    picture = draw_normal(canvas)
    layers = phantom_findings.coverages(chosen.lesions, canvas)
    phantom_paint.paint(picture, chosen.lesions, layers, canvas)
    return phantom_paint.expose(picture, canvas)


def places(chosen: Study, size: int) -> list[tuple[int, np.ndarray]]:
    """(position in `lesions`, bool[size, size]) for each region that a finding occupies.

    Edema has one region per lung. A finding that another covers, such as free air under fluid, may
    have none.
    """
    canvas = Canvas(chosen.frame(), size)
    layers = phantom_findings.coverages(chosen.lesions, canvas)
    found = []
    for position, (lesion, parts) in enumerate(zip(chosen.lesions, layers, strict=True)):
        for part in parts:
            inside = phantom_findings.is_inside(lesion.finding, part)
            if inside.any():
                found.append((position, inside))
    return found


def masks(chosen: Study, size: int) -> dict[str, np.ndarray]:
    """Finding name -> bool[size, size], the union of its regions."""
    result: dict[str, np.ndarray] = {}
    for position, inside in places(chosen, size):
        name = chosen.lesions[position].finding.name
        result[name] = result[name] | inside if name in result else inside
    return result


def boxes(chosen: Study, size: int) -> tuple[Box, ...]:
    """The bounding box of each region in pixels, with the sentence that states the finding."""
    result = []
    for position, inside in places(chosen, size):
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        corners = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        stated = [
            number
            for number, sentence in enumerate(chosen.sentences)
            if sentence.section == "findings" and position in sentence.states
        ]
        x0, y0, x1, y1 = map(float, corners)
        label = chosen.lesions[position].finding.name
        result.append(Box((x0, y0, x1, y1), label, stated[0] if stated else -1))
    return tuple(result)


Draw = Callable[[int, int], Study]
"""(seed, index) -> a study: `study` itself, or `course.study`."""


def load_image(seed: int, index: int, size: int, draw: Draw = study) -> np.ndarray:
    """`render` of a study, u8[size, size]; with functools.partial, the `load` of an ImageRef."""
    return render(draw(seed, index), size)


def load_boxes(seed: int, index: int, size: int, draw: Draw = study) -> tuple[Box, ...]:
    """`boxes` of a study; with functools.partial, for `LazyBoxes`."""
    return boxes(draw(seed, index), size)


def load_masks(seed: int, index: int, size: int, draw: Draw = study) -> dict[str, np.ndarray]:
    """`masks` of a study; with functools.partial, the `masks` of a Record."""
    return masks(draw(seed, index), size)
