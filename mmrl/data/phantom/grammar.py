"""Reports of the phantom corpus. Every sentence is true of the image.

A report has an indication, 2 to 6 sentences of findings and an impression. The sentences of
findings state or deny findings, in random order, each in one of several wordings. Each `Sentence`
lists the findings that it states and denies.
"""

import dataclasses

from mmrl.data.phantom.anatomy import SIDES, Patient, Technique
from mmrl.data.phantom.dice import Dice
from mmrl.data.phantom.findings import DEVICES, KINDS, Lesion
from mmrl.types import Finding

MOST_SENTENCES = 6


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence and its content.

    Attributes:
      section: findings or impression.
      states: positions of the stated findings in the findings of the study.
      denies: (finding, side) pairs that the sentence denies; side "" denies both sides.
    """

    section: str
    text: str
    states: tuple[int, ...] = ()
    denies: tuple[tuple[str, str], ...] = ()


_COMPLAINTS = (
    "cough",
    "shortness of breath",
    "chest pain",
    "fever",
    "hypoxia",
    "dyspnea on exertion",
    "preoperative evaluation",
    "follow-up",
    "weakness",
    "trauma",
)

_ADVERB = {"mild": "mildly", "moderate": "moderately", "severe": "severely"}

_WORDINGS = {
    "cardiomegaly": (
        "{severity} cardiomegaly.",
        "The heart is {adverb} enlarged.",
        "The cardiac silhouette is {adverb} enlarged.",
        "There is {severity} enlargement of the heart.",
        "Heart size is {adverb} increased.",
    ),
    "edema": (
        "{severity} pulmonary edema.",
        "There is {severity} diffuse pulmonary edema.",
        "Perihilar haze on both sides, in keeping with {severity} edema.",
        "{severity} diffuse edema with indistinct vessels.",
    ),
    "pleural effusion": (
        "{severity} {side} pleural effusion.",
        "There is a {severity} pleural effusion on the {side}.",
        "A {severity} {side} effusion is present.",
        "The {side} costophrenic angle is blunted by a {severity} effusion.",
        "{severity} effusion layering at the {side} base.",
    ),
    "pneumothorax": (
        "{severity} {side} {zone} pneumothorax.",
        "There is a {severity} {zone} pneumothorax on the {side}.",
        "A {severity} {side} pneumothorax is seen.",
        "The {side} lung is partly collapsed by a {severity} {zone} pneumothorax.",
    ),
    "consolidation": (
        "{severity} consolidation in the {side} {zone} zone.",
        "There is {severity} consolidation in the {side} {zone} lung.",
        "{severity} airspace opacity in the {side} {zone} zone, consistent with consolidation.",
        "The {side} {zone} lung shows {severity} consolidation.",
    ),
    "nodule": (
        "{severity} nodule in the {side} {zone} zone.",
        "A {severity} nodule projects over the {side} {zone} lung.",
        "Rounded nodule of {severity} in the {side} {zone} zone.",
        "The {side} {zone} lung contains a {severity} nodule.",
    ),
    "atelectasis": (
        "Linear atelectasis in the {side} {zone} zone.",
        "Band of atelectasis in the {side} {zone} lung.",
        "There is plate-like atelectasis in the {side} {zone} zone.",
        "The {side} {zone} lung shows linear atelectasis.",
    ),
    "endotracheal tube": (
        "Endotracheal tube in place.",
        "An endotracheal tube ends above the carina.",
        "The endotracheal tube is in satisfactory position.",
        "The patient is intubated, with the endotracheal tube above the carina.",
    ),
    "central venous catheter": (
        "{side} central venous catheter in place.",
        "A {side} central venous catheter ends in the superior vena cava.",
        "Central venous catheter from the {side}, tip in the superior vena cava.",
        "There is a {side} central venous catheter.",
    ),
    "pacemaker": (
        "{side} chest wall pacemaker.",
        "A pacemaker lies over the {side} chest, its lead in the right ventricle.",
        "Pacemaker generator on the {side} with a single lead.",
        "There is a {side} pacemaker.",
    ),
}

# Denials of a finding on both sides, and of a finding on one side.
_DENIALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cardiomegaly": (
        ("Heart size is normal.", "The heart is not enlarged.", "Normal cardiac silhouette."),
        (),
    ),
    "edema": (("No pulmonary edema.", "There is no edema.", "No evidence of edema."), ()),
    "pleural effusion": (
        ("No pleural effusion.", "There is no effusion.", "The costophrenic angles are sharp."),
        ("No {side} pleural effusion.", "The {side} costophrenic angle is sharp."),
    ),
    "pneumothorax": (
        ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
        ("No {side} pneumothorax.", "There is no pneumothorax on the {side}."),
    ),
    "consolidation": (
        ("No focal consolidation.", "There is no consolidation.", "No airspace opacity."),
        ("No consolidation in the {side} lung.", "The {side} lung shows no consolidation."),
    ),
    "nodule": (
        ("No nodule.", "No suspicious nodule is seen.", "There is no pulmonary nodule."),
        ("No nodule in the {side} lung.",),
    ),
}
_IN_LUNG = (
    "edema",
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "nodule",
    "atelectasis",
)
_NOTHING_ACUTE = (
    "No acute cardiopulmonary abnormality.",
    "No acute disease.",
    "No evidence of active disease.",
)
_NORMAL = (*_NOTHING_ACUTE, "Normal chest radiograph.")  # if there is no scoliosis or the like
_UNCHANGED_DEVICE = ("No acute disease. {devices} in place.", "{devices}, no acute abnormality.")


def _sentence(text: str) -> str:
    """Removes the double spaces that empty attributes leave, and capitalises the first letter."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:]


def _state(finding: Finding, dice: Dice) -> str:
    return _sentence(
        dice.pick(_WORDINGS[finding.name]).format(
            side=finding.side,
            zone=finding.zone,
            severity=finding.severity,
            adverb=_ADVERB.get(finding.severity, ""),
        )
    )


def _bilateral(first: Finding, second: Finding, dice: Dice) -> str:
    """Two effusions in one sentence."""
    if first.severity == second.severity:
        wordings = ("{0} bilateral pleural effusions.", "There are {0} effusions on both sides.")
        return _sentence(dice.pick(wordings).format(first.severity))
    wordings = (
        "{0} {1} and {2} {3} pleural effusions.",
        "Pleural effusions, {0} on the {1} and {2} on the {3}.",
    )
    return _sentence(
        dice.pick(wordings).format(first.severity, first.side, second.severity, second.side)
    )


def _positive(findings: tuple[Finding, ...], dice: Dice) -> list[Sentence]:
    effusions = tuple(i for i, f in enumerate(findings) if f.name == "pleural effusion")
    joined = effusions if len(effusions) == 2 and dice.chance(0.6) else ()
    sentences = []
    if joined:
        text = _bilateral(findings[joined[0]], findings[joined[1]], dice)
        sentences.append(Sentence("findings", text, joined))
    sentences += [
        Sentence("findings", _state(finding, dice), (position,))
        for position, finding in enumerate(findings)
        if position not in joined
    ]
    return sentences


def _incidental(patient: Patient, technique: Technique, dice: Dice) -> list[Sentence]:
    """Sentences on visible properties of the anatomy and the exposure."""
    texts: list[tuple[str, ...]] = []
    if technique.inspiration == "low":
        texts.append(("Low lung volumes.", "Lung volumes are low.", "Shallow inspiration."))
    if technique.inspiration == "high":
        texts.append(("The lungs are hyperinflated.", "Hyperinflation of both lungs."))
    if patient.scoliosis:
        side = SIDES[patient.scoliosis > 0]
        texts.append((f"Scoliosis convex to the {side}.", f"Thoracic scoliosis to the {side}."))
    if patient.aorta:
        texts.append(("Prominent aortic knob.", "The aorta is ectatic."))
    for side, rise in zip(SIDES, patient.elevation, strict=True):
        if rise:
            texts.append((f"Elevated {side} hemidiaphragm.", f"The {side} diaphragm is raised."))
    return [Sentence("findings", dice.pick(wordings)) for wordings in texts]


def _negative(findings: tuple[Finding, ...], dice: Dice) -> list[Sentence]:
    """Denials of all findings that are absent, in random order."""
    present = {(finding.name, finding.side) for finding in findings}
    names = {name for name, _ in present}
    sentences = []
    for name, (everywhere, one_side) in _DENIALS.items():
        if name not in names:
            sentences.append(Sentence("findings", dice.pick(everywhere), (), ((name, ""),)))
            continue
        free = [side for side in SIDES if (name, side) not in present]
        if one_side and len(free) == 1:
            text = dice.pick(one_side).format(side=free[0])
            sentences.append(Sentence("findings", text, (), ((name, free[0]),)))
    clear = [
        side
        for side in SIDES
        if not any(name in _IN_LUNG and at in (side, "bilateral") for name, at in present)
    ]
    if clear:
        which = "Both lungs are" if len(clear) == 2 else f"The {clear[0]} lung is"
        where = "" if len(clear) == 2 else clear[0]
        denied = tuple((name, where) for name in _IN_LUNG)
        sentences.append(Sentence("findings", f"{which} clear.", (), denied))
    return dice.shuffled(sentences)


def _impression(findings: tuple[Finding, ...], incidental: bool, dice: Dice) -> Sentence:
    """A summary of at most three findings in the order of `KINDS`, or of the devices."""
    disease = [i for i, f in enumerate(findings) if f.name not in DEVICES]
    devices = [i for i, f in enumerate(findings) if f.name in DEVICES]
    names = [f"{findings[i].side} {findings[i].name}".strip() for i in devices]
    if not disease and not devices:
        denied = tuple((name, "") for name in KINDS if name not in DEVICES)
        text = dice.pick(_NOTHING_ACUTE if incidental else _NORMAL)
        return Sentence("impression", text, (), denied)
    if not disease:
        listed = _sentence(" and ".join(names))
        text = dice.pick(_UNCHANGED_DEVICE).format(devices=listed)
        return Sentence("impression", text, tuple(devices))
    shown = disease[:3]
    parts = []
    for position in shown:
        finding = findings[position]
        place = f"{finding.side} {finding.zone}" if finding.side != "bilateral" else ""
        parts.append(" ".join(f"{finding.severity} {place} {finding.name}".split()))
    return Sentence("impression", _sentence("; ".join(parts) + "."), tuple(shown))


def indication(patient: Patient, dice: Dice) -> str:
    """Age, sex and complaint, which do not depend on the findings."""
    noun = "woman" if patient.female else "man"
    return f"{patient.age}-year-old {noun} with {dice.pick(_COMPLAINTS)}."


def write(
    lesions: tuple[Lesion, ...], patient: Patient, technique: Technique, dice: Dice
) -> tuple[Sentence, ...]:
    """The sentences of findings (2 to 6, in random order) and of the impression."""
    findings = tuple(lesion.finding for lesion in lesions)
    incidental = _incidental(patient, technique, dice)
    sentences = (_positive(findings, dice) + incidental)[:MOST_SENTENCES]
    room = MOST_SENTENCES - len(sentences)
    wanted = max(2 - len(sentences), 2 + int(dice.unit() * 3))
    sentences += _negative(findings, dice)[: min(room, wanted)]
    return (*dice.shuffled(sentences), _impression(findings, bool(incidental), dice))
