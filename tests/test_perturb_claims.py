"""Kinds that reword claims: negation flipped, findings exchanged; and the analysis they rest on."""

import re

import pytest

from mmrl.data import perturb
from mmrl.data.perturb.edits import edited, word_edits
from mmrl.data.perturb.phrases import noun_phrase
from mmrl.data.perturb.statements import analyse
from mmrl.data.perturb.terms import TERM, TERMS


def results(report: str, kind: str) -> set[str]:
    return set(perturb.candidates(report, kind))


DENIED = {
    "No pneumothorax.": {"There is a pneumothorax.", "A pneumothorax is present."},
    "There is no consolidation.": {"There is consolidation.", "Consolidation is present."},
    "No airspace opacity.": {"There is an airspace opacity.", "An airspace opacity is present."},
    "No pleural effusions.": {"There are pleural effusions.", "Pleural effusions are present."},
    "No suspicious nodule is seen.": {"A suspicious nodule is seen."},
    "No definite fracture identified.": {"A fracture is identified."},
    "No evidence of edema.": {"There is evidence of edema."},
    "There are no signs of edema.": {"There are signs of edema."},
    "Specifically, no mass.": {
        "Specifically, there is a mass.",
        "Specifically, a mass is present.",
    },
    "No nodules or mass are seen.": {
        "Nodules and a mass are seen.",
        "Nodules are seen, but no mass.",
        "A mass is seen, but no nodules.",
    },
    "There is no pleural effusion or pneumothorax.": {
        "There is a pleural effusion and a pneumothorax.",
        "A pleural effusion and a pneumothorax are present.",
        "There is a pleural effusion, but no pneumothorax.",
        "There is a pneumothorax, but no pleural effusion.",
    },
    "No evidence of effusion, edema, or mass.": {
        "There is evidence of effusion, edema, and mass.",
        "There is evidence of effusion, but not of edema or mass.",
        "There is evidence of edema, but not of effusion or mass.",
        "There is evidence of mass, but not of effusion or edema.",
    },
    "No focal opacity to suggest pneumonia.": {"There is a focal opacity to suggest pneumonia."},
    "There is no opacity to suggest infection.": {"There is an opacity to suggest infection."},
    # a degree may be shared, so what follows it is never affirmed alone
    "No large effusion or pneumothorax.": {
        "There is a large effusion and a pneumothorax.",
        "A large effusion and a pneumothorax are present.",
        "There is a large effusion, but no pneumothorax.",
    },
    "Negative for effusion or mass.": {
        "Positive for effusion and mass.",
        "Positive for effusion, but negative for mass.",
        "Positive for mass, but negative for effusion.",
    },
    "The lungs are free of focal infiltrate.": {"The lungs show a focal infiltrate."},
    "Both lungs are clear of nodules.": {"Both lungs show nodules."},
    "The ribs show no fracture.": {"The ribs show a fracture."},
    "The bony structures are without acute abnormality.": {
        "The bony structures show an acute abnormality."
    },
    "Pneumothorax is not seen.": {"Pneumothorax is seen."},
    "Lungs are clear without effusion.": {"The lungs are not clear, with an effusion."},
    "Clear lungs, without fracture.": set(),
    "Mild cardiomegaly without pulmonary edema.": {"Mild cardiomegaly with pulmonary edema."},
    "Stable cardiomegaly with clips, no edema.": {"Stable cardiomegaly with clips, and edema."},
}
AFFIRMED = {
    "There is a small left pleural effusion.": {"There is no left pleural effusion."},
    "Mild cardiomegaly.": {"No cardiomegaly."},
    "Patchy consolidation in the left lower lobe.": {"No consolidation in the left lower lobe."},
    "Multiple calcified granulomas are again seen in the right lung.": {
        "No calcified granulomas are seen in the right lung."
    },
    "A 12 mm nodule projects over the left upper lung.": {
        "No nodule projects over the left upper lung."
    },
    "12 mm left upper nodule.": {"No left upper nodule."},
    "Rounded nodule of 12 mm in the left lung.": {"No rounded nodule in the left lung."},
    "Small left and large right pleural effusions.": {"No pleural effusions."},
    "Effusions, small on the left and large on the right.": {"No effusions."},
    "Hyperinflation of both lungs.": {"No hyperinflation of either lung."},
    "There are effusions on both sides.": {"There are no effusions on either side."},
    "Atelectasis of the left and right bases.": {"No atelectasis of the left or right bases."},
    "Opacity in the left base, consistent with pneumonia.": {"No opacity in the left base."},
    "Prominent interstitial markings.": {"No prominent interstitial markings."},
    "The left upper lung shows dense consolidation.": {
        "The left upper lung shows no consolidation."
    },
    "Small left effusion and mild scoliosis.": {
        "No left effusion or scoliosis.",
        "Small left effusion, but no scoliosis.",
        "Mild scoliosis, but no left effusion.",
    },
    # either may be true, so that only both can be denied
    "Scarring or atelectasis in the left base.": {"No scarring or atelectasis in the left base."},
    "Left-sided pacemaker with two leads.": {"There is no left-sided pacemaker."},
    "The endotracheal tube is in satisfactory position.": {"There is no endotracheal tube."},
    "The patient is intubated, with the tube above the carina.": {"The patient is not intubated."},
    "Severe edema; small left effusion.": {
        "No edema; small left effusion.",
        "Severe edema; no left effusion.",
    },
    "T-spine osteophytes.": {"No T-spine osteophytes."},
}
NORMAL = {
    "Heart size is normal.": {"Heart size is not normal.", "Heart size is abnormal."},
    "Heart size normal.": {"Heart size is not normal.", "Heart size is abnormal."},
    "Normal heart size.": {"Abnormal heart size."},
    "The lungs are clear.": {"The lungs are not clear."},
    "Both lungs are clear and expanded.": {"The lungs are not clear or expanded."},
    "The mediastinum is grossly unremarkable.": {"The mediastinum is abnormal."},
    "Osseous structures appear intact.": {"Osseous structures do not appear intact."},
    "Cardiac contours are within normal limits.": {
        "Cardiac contours are not within normal limits."
    },
    "The heart is normal in size and contour.": {
        "The heart is not normal in size or contour.",
        "The heart is abnormal in size and contour.",
    },
    "The heart is normal size.": {
        "The heart is not normal in size.",
        "The heart is abnormal in size.",
    },
    "Heart of normal size and contour.": {"Heart of abnormal size and contour."},
    "The heart is mildly enlarged.": {"The heart is not enlarged."},
    "The heart is not enlarged.": {"The heart is enlarged."},
    "Tortuous aorta.": {"The aorta is not tortuous."},
    "The aorta is tortuous and calcified.": {"The aorta is not tortuous or calcified."},
    "Low lung volumes.": {"Lung volumes are not low."},
    "Elevated left hemidiaphragm.": {"The left hemidiaphragm is not elevated."},
    "The left costophrenic angle is blunted by a small effusion.": {
        "The left costophrenic angle is not blunted."
    },
}
LEFT_ALONE = (
    "Heart size is at the upper limits of normal.",
    "The lungs are otherwise clear.",
    "No other nodules.",
    "No change in the left effusion.",
    "The effusion is no longer seen.",
    "There may be a small effusion.",
    "Possible left lower lobe pneumonia.",
    "No XXXX pneumothorax.",
    "XXXX are normal.",
    "No acute or chronic fracture.",
    "Cannot exclude pneumonia.",
    "Mild cardiomegaly, the aorta is not well seen.",
    "PA and lateral views of the chest were obtained.",
)


@pytest.mark.parametrize(("report", "expected"), (DENIED | AFFIRMED | NORMAL).items())
def test_flip_negation(report: str, expected: set[str]) -> None:
    assert results(report, "flip_negation") == expected


@pytest.mark.parametrize("report", LEFT_ALONE)
def test_flip_negation_leaves_alone(report: str) -> None:
    assert results(report, "flip_negation") == set()


@pytest.mark.parametrize(
    ("denial", "elsewhere", "flipped"),
    [
        ("No consolidation.", "Hazy left basilar opacity.", False),
        ("The lungs are clear.", "Calcified granuloma in the left lung.", False),
        ("No acute disease.", "Left lower lobe pneumonia.", False),
        ("No pleural effusion.", "Blunting of the left costophrenic angle.", False),
        ("No pleural effusion.", "Calcified granuloma in the left lung.", True),
        ("The lungs are clear.", "Degenerative changes of the spine.", True),
        ("No acute disease.", "Right chest tube.", True),
    ],
)
def test_flip_negation_asserts_nothing_that_may_be_true(
    denial: str, elsewhere: str, flipped: bool
) -> None:
    assert any(
        denial not in text for text in results(f"{denial} {elsewhere}", "flip_negation")
    ) == (flipped)


EXCHANGED = {
    "Small left pleural effusion. No pneumothorax.": {
        "Small left pneumothorax. No pleural effusion."
    },
    "There is a small left effusion. There is no consolidation.": {
        "There is mild left consolidation. There is no pleural effusion."
    },
    "Mild pulmonary edema is seen. No pleural effusion.": {
        "A small pleural effusion is seen. No pulmonary edema."
    },
    "Large effusion layering at the left base. No pneumothorax.": {
        "Large pneumothorax at the left base. No pleural effusion."
    },
    "12 mm nodule in the left upper zone. No consolidation. Left upper nodule.": {
        "Consolidation in the left upper zone. No nodule. Left upper consolidation."
    },
    "Left basilar opacities. No pneumothorax.": set(),
    "Nodule overlying the left base. No effusion.": set(),
    "1. 12 mm nodule in the left lung.\n2. No infiltrate.": {
        "1. Infiltrate in the left lung.\n2. No nodule."
    },
    "Bilateral effusions. No pneumothorax or fracture.": {
        "Bilateral pneumothoraces. No pleural effusion or fracture."
    },
    "There is a calcified granuloma in the left lower lobe. No infiltrate.": {
        "There is an infiltrate in the left lower lobe. No granuloma."
    },
    "Small right pleural effusion. Large left pneumothorax.": {
        "Small right pneumothorax. Large left pleural effusion."
    },
    # denied only in part, so that the exchange could be true
    "Small left effusion. No large pneumothorax.": set(),
    "Small left effusion. No pneumothorax on the right.": set(),
    "Mild left consolidation. No acute infiltrate.": set(),
    # places that pleura or diffuse findings cannot have
    "Nodule in the left upper lobe. No pleural effusion.": set(),
    "Left basilar atelectasis. No pulmonary edema.": set(),
    # hedged, unreadable, or at the same place
    "Possible left effusion. No pneumothorax.": set(),
    "Left XXXX effusion. No pneumothorax.": set(),
    "Left effusion. Left pneumothorax.": set(),
    "Small left and moderate right effusions. No pneumothorax.": set(),
    "The left angle is blunted by an effusion. No pneumothorax.": set(),
    "The lungs are clear without edema. Mild cardiomegaly.": set(),
}


@pytest.mark.parametrize(("report", "expected"), EXCHANGED.items())
def test_swap_finding(report: str, expected: set[str]) -> None:
    assert results(report, "swap_finding") == expected


@pytest.mark.parametrize("kind", ["flip_negation", "swap_finding"])
def test_candidates_are_distinct_and_keep_the_marks_of_the_list(kind: str) -> None:
    report = "1. 12 mm left nodule.\n2. No infiltrate or  edema. Heart size is normal."
    found = perturb.candidates(report, kind)
    assert found
    assert len(set(found)) == len(found)
    for candidate in found:
        assert candidate.lower() != report.lower()
        assert re.match(r"1\. (?:12 mm|[A-Z])", candidate)


@pytest.mark.parametrize(
    ("sentence", "denied", "affirmed"),
    [
        ("Mild edema without effusion.", {"effusion"}, {"edema"}),
        ("No effusion, but there is a nodule.", {"effusion"}, {"nodule"}),
        ("No effusion with small pneumothorax.", {"effusion"}, {"pneumothorax"}),
        ("No significant interval change in the effusion.", set(), {"effusion"}),
        ("The effusion has not significantly changed.", set(), {"effusion"}),
        ("The left effusion has resolved.", {"effusion"}, set()),
        ("Resolved interstitial edema.", {"edema"}, set()),
        ("Interval removal of right chest tube.", {"chest tube"}, set()),
        ("The PICC has been removed.", {"picc"}, set()),
        ("Cannot exclude pneumonia.", set(), {"pneumonia"}),
        ("Free of consolidation and edema.", {"consolidation", "edema"}, set()),
        ("No acute bony changes.", {"bone abnormality"}, set()),
    ],
)
def test_scope_of_negation(sentence: str, denied: set[str], affirmed: set[str]) -> None:
    said = analyse(sentence)
    assert {mention.concept for mention in said.mentions if mention.negated} == denied
    assert {mention.concept for mention in said.mentions if not mention.negated} == affirmed
    assert all(said.is_negated(mention.start) == mention.negated for mention in said.mentions)


def test_longest_term_wins() -> None:
    assert [match[0] for match in TERM.finditer("Pleural effusion, hiatal hernia, non-mass")] == [
        "Pleural effusion",
        "hiatal hernia",
    ]
    assert all(TERM.fullmatch(name) for name in TERMS)


@pytest.mark.parametrize(
    "text", ["possible effusion", "effusion and edema", "effusion, which grew", "chest", ""]
)
def test_phrases_with_unknown_words_are_not_read(text: str) -> None:
    assert noun_phrase(text) is None


def test_word_edits_rebuild_the_new_text() -> None:
    old, new = "No pleural effusion, no mass.", "There is a pleural effusion, but no mass."
    assert edited(old, word_edits(old, new)) == new
