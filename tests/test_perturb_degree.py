"""Degrees and courses: which sentences are reworded into which, and which are left alone."""

import re

import pytest

from mmrl.data.perturb import candidates

# sentence -> all that it may become, in order
SEVERITY = {
    # each kind of head takes the opposite that fits it
    "Mild cardiomegaly.": ["Severe cardiomegaly."],
    "There is moderate edema.": ["There is severe edema.", "There is mild edema."],
    "Slight elevation of the left diaphragm.": ["Marked elevation of the left diaphragm."],
    "Minimal basilar scarring.": ["Extensive basilar scarring."],
    "Severe spondylosis, unchanged.": ["Mild spondylosis, unchanged."],
    "A trace right effusion.": ["A large right effusion."],
    "Moderate sized hiatal hernia.": ["Large hiatal hernia.", "Small hiatal hernia."],
    "Small amount of pleural fluid.": ["Large amount of pleural fluid."],
    "MILD EDEMA.": ["SEVERE EDEMA."],
    "Patchy infiltrate at the left base.": ["Dense infiltrate at the left base."],
    "Dense consolidation in the lingula.": ["Patchy consolidation in the lingula."],
    "Mild patchy infiltrate.": ["Extensive patchy infiltrate."],
    "Minimal pleural fluid.": ["Extensive pleural fluid."],
    "Mild increased basilar opacity.": ["Marked increased basilar opacity."],
    # adverbs
    "The heart is mildly enlarged.": ["The heart is severely enlarged."],
    "Heart size is mildly increased.": ["Heart size is severely increased."],
    "The left diaphragm is slightly elevated.": ["The left diaphragm is markedly elevated."],
    "The heart is slightly large.": ["The heart is severely enlarged."],
    # ranges change as a whole, articles follow
    "Mild to moderate scoliosis.": ["Severe scoliosis."],
    "A minimal opacity at the base.": ["An extensive opacity at the base."],
    "An extensive infiltrate.": ["A minimal infiltrate."],
    # the border of normal
    "Borderline cardiomegaly.": ["Severe cardiomegaly."],
    "The heart is borderline in size.": ["The heart is severely enlarged."],
    "Heart size is at the upper limits of normal.": ["Heart size is severely enlarged."],
    # after the finding
    "The effusion is small.": ["The effusion is large."],
    "Effusions, small on the left and moderate on the right.": [
        "Effusions, large on the left and moderate on the right.",
        "Effusions, small on the left and large on the right.",
    ],
    # neither side may end up as the other
    "Small left and large right effusions.": [
        "Moderate left and large right effusions.",
        "Small left and moderate right effusions.",
    ],
    # only the asserted part of a sentence
    "Mild edema, no large effusion.": ["Severe edema, no large effusion."],
    "Mild blunting which may be a small effusion.": [
        "Marked blunting which may be a small effusion."
    ],
    # restatements go along, the other side does not
    "The heart is mildly enlarged. Mild cardiomegaly.": [
        "The heart is severely enlarged. Severe cardiomegaly."
    ],
    "Small left effusion. Small right effusion.": [
        "Large left effusion. Small right effusion.",
        "Small left effusion. Large right effusion.",
    ],
    "Small bilateral effusions. Small left effusion; small right effusion.": [
        "Large bilateral effusions. Large left effusion; large right effusion."
    ],
    # sizes
    "A 20 mm nodule on the left. 20 mm left nodule.": [
        "A 12 mm nodule on the left. 12 mm left nodule."
    ],
    "An 8mm nodule.": ["A 16mm nodule.", "A 20mm nodule.", "A 24mm nodule.", "A 28mm nodule."],
    "Mass measuring 6.0 cm.": ["Mass measuring 1.6 cm.", "Mass measuring 2.0 cm."]
    + ["Mass measuring 2.4 cm.", "Mass measuring 2.8 cm."],
}
SEVERITY_NONE = (
    "No large effusion.",
    "There is no pneumothorax or large effusion.",
    "Without significant edema, large effusion is absent.",
    "Possible mild edema.",
    "Opacity may represent mild atelectasis.",
    "Atelectasis or small infiltrate.",
    "Effusion or large mass.",
    "Large body habitus.",
    "Air filled small bowel.",
    "Dense breast tissue.",
    "The patient has moderate XXXX motion.",
    "The opacities have slightly improved.",
    "Slight interval increase in the opacity.",
    "The effusion is slightly increased since the prior study.",
    "Heart size is normal to mildly enlarged.",
    "Mild or moderate edema.",
    "Moderate severe scoliosis.",
    "Borderline heart size and scoliosis.",
    "The right effusion is slightly increased.",
    "Osteophyte formation which is severe.",
    "Endotracheal tube tip 4 cm above the carina, no nodule.",
    "A nodule measures 2.2 x 1.6 cm.",
    "The nodule was 8 mm on the prior study.",
    "Heart size is normal.",
)
TEMPORAL = {
    # stable and unchanged, before a finding
    "Stable cardiomegaly.": ["New cardiomegaly."],
    "There is a stable granuloma.": ["There is a new granuloma."],
    "Unchanged blunting of the left angle.": ["Worsening blunting of the left angle."],
    "Stable mild scoliosis.": ["New mild scoliosis."],
    "Stable, mild scoliosis.": ["New, mild scoliosis."],
    "Stable chronic interstitial changes.": ["Worsening chronic interstitial changes."],
    "There is a stable enlarged heart.": ["There is a newly enlarged heart."],
    "Stable sternotomy wires.": ["New sternotomy wires."],
    # before a structure
    "Stable mediastinal contours.": ["Interval change in mediastinal contours."],
    "Views show an unchanged cardiac silhouette.": [
        "Views show interval change in the cardiac silhouette."
    ],
    "There are stable mediastinal contours.": ["There is interval change in mediastinal contours."],
    "The tube is in unchanged position.": ["The tube is in changed position."],
    # after it
    "The mediastinum is stable.": ["The mediastinum has changed."],
    "The contours are grossly unchanged from prior.": ["The contours have changed from prior."],
    "The opacities are stable.": ["The opacities have worsened."],
    "The nodule is unchanged.": ["The nodule has increased in size."],
    "The effusion appears unchanged.": ["The effusion appears to have increased."],
    "The catheter is unchanged in position.": ["The catheter has changed in position."],
    "Right basilar scarring, unchanged.": ["Right basilar scarring, worsened."],
    "The heart is enlarged but stable.": ["The heart is enlarged and has increased in size."],
    "The heart is stable given the low volumes.": ["The heart has changed given the low volumes."],
    # beside normal
    "The silhouette is stable and normal.": ["The silhouette has changed but is normal."],
    "The contours are normal, and unchanged.": ["The contours are normal but have changed."],
    # denied change
    "No interval change.": ["Interval change."],
    "There has been no significant change in the mass.": [
        "There has been significant interval change in the mass."
    ],
    "Opacities without significant interval change.": [
        "Opacities with significant interval change."
    ],
    "The mass has not significantly changed.": ["The mass has significantly changed."],
    # changes turned
    "The left effusion has resolved.": ["The left effusion persists."],
    "The effusions have cleared.": ["The effusions persist."],
    "The effusion has resolved since the prior.": ["The effusion has worsened since the prior."],
    "An infiltrate has developed on the left.": ["An infiltrate has resolved on the left."],
    "Interval development of edema.": ["Interval resolution of edema."],
    "Interval resolution of edema.": ["Interval worsening of edema."],
    "Interval improvement in the edema.": ["Interval worsening of the edema."],
    "The edema has markedly improved.": ["The edema has markedly worsened."],
    "Worsening edema.": ["Improving edema."],
    "An improving effusion.": ["A worsening effusion."],
    "The mass has increased in size.": ["The mass has decreased in size."],
    "Opacities, decreased from the prior study.": ["Opacities, increased from the prior study."],
    "Increasing left effusion.": ["Decreasing left effusion."],
    "Interval removal of the chest tube.": ["Interval placement of the chest tube."],
    "There is a persistent opacity.": ["There is a new opacity."],
    "The effusion is persistent.": ["The effusion has resolved."],
    "The left opacity persists.": ["The left opacity has resolved."],
    "Clips are again seen.": ["Clips are newly seen."],
    "There is again biapical scarring.": ["There is new biapical scarring."],
    "Redemonstration of a granuloma.": ["Interval development of a granuloma."],
    "The appearance is similar to the prior study.": [
        "The appearance is different from the prior study."
    ],
    "The nodule is no longer seen.": ["The nodule is still seen."],
    # age
    "Old rib fractures.": ["Acute rib fractures."],
    "An old, healed left rib fracture.": ["An acute left rib fracture."],
    "An acute rib fracture.": ["An old rib fracture."],
    "A new right effusion.": ["An unchanged right effusion."],
    "Evidence of prior granulomatous disease.": ["Evidence of active granulomatous disease."],
    "Chronic blunting of the right angle.": ["New blunting of the right angle."],
    "A chronic appearing deformity.": ["An acute appearing deformity."],
}
TEMPORAL_NONE = (
    "No new infiltrate.",
    "No acute fracture.",
    "No acute bony abnormality.",
    "Possible old rib fractures.",
    "Old or recent rib fracture.",
    "Probably chronic blunting.",
    "Stable normal cardiac silhouette.",
    "Normal and stable cardiac silhouette.",
    "Stable cardiomegaly and mediastinal contours.",
    "Old rib fractures, healed.",
    "Old rib fractures without acute abnormality.",
    "Chronic deformities from old fractures.",
    "Sequela of old granulomatous disease.",
    "Hyperinflation from chronic obstructive pulmonary disease.",
    "Left effusion, again noted and stable to decreased.",
    "Basilar opacities, left worse than right.",
    "Increased interstitial markings.",
    "Decreased lung volumes.",
    "Prior cholecystectomy.",
    "The silhouette is stable and upper limits of normal.",
    "Interval placement of a line with its tip in the vena cava.",
    "Chronic appearing scarring.",
    "Redemonstration of the amputation.",
    "Old granulomatous scars, stable.",
    "Heart size is normal, improved from prior.",
    "Mild degenerative change.",
    "The lungs are clear.",
)


@pytest.mark.parametrize(("before", "after"), SEVERITY.items())
def test_degrees_are_swapped(before: str, after: list[str]) -> None:
    assert candidates(before, "swap_severity") == after


@pytest.mark.parametrize("report", SEVERITY_NONE)
def test_degrees_left_alone(report: str) -> None:
    assert candidates(report, "swap_severity") == []


@pytest.mark.parametrize(("before", "after"), TEMPORAL.items())
def test_courses_are_swapped(before: str, after: list[str]) -> None:
    assert candidates(before, "swap_temporal") == after


@pytest.mark.parametrize("report", TEMPORAL_NONE)
def test_courses_left_alone(report: str) -> None:
    assert candidates(report, "swap_temporal") == []


@pytest.mark.parametrize("kind", ["swap_severity", "swap_temporal"])
def test_sentences_are_reworded_where_they_stand(kind: str) -> None:
    """In a report of all sentences each change shows, and articles fit everywhere."""
    report = " ".join([*SEVERITY, *TEMPORAL, *SEVERITY_NONE, *TEMPORAL_NONE])
    results = candidates(report, kind)
    assert len(results) > 20
    for result in results:
        assert result.casefold() != report.casefold()
        assert not re.search(r"\b(?:an [bcdfgjklmnpqrstvwxz]|a [aeio])", result, re.IGNORECASE)
        assert "  " not in result
