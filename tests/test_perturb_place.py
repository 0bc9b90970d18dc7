"""Sides, zones and devices: what each kind makes of a sentence, and what it leaves alone."""

import pytest

from mmrl.data.perturb import candidates as reworded

SIDES = [
    # Side for side; every mention of the side in the sentence at once; capitals are kept.
    ("A vague opacity lies in the left base.", ["A vague opacity lies in the right base."]),
    ("LEFT BASE NODULE.", ["RIGHT BASE NODULE."]),
    (
        "The right hemidiaphragm is elevated by bowel.",
        ["The left hemidiaphragm is elevated by bowel."],
    ),
    ("Rightward deviation of the trachea.", ["Leftward deviation of the trachea."]),
    ("Right-sided port with tip in the SVC.", ["Left-sided port with tip in the SVC."]),
    (
        "In the left lung, a nodule overlies the left fifth rib.",
        ["In the right lung, a nodule overlies the right fifth rib."],
    ),
    ("Mild dextroscoliosis.", ["Mild levoscoliosis."]),
    ("Left pacemaker, leads in the right atrium.", ["Right pacemaker, leads in the right atrium."]),
    # The middle lobe and the lingula.
    ("A nodule is in the right middle lobe.", ["A nodule is in the lingula."]),
    ("Right middle lobe nodule.", ["Lingular nodule."]),
    ("Nodule in the left lingula.", ["Nodule in the right middle lobe."]),
    ("There is a lingular nodule.", ["There is a right middle lobe nodule."]),
    ("Dense opacity in the right middle and lower lobes.", []),
    # The worse side; unequal sides.
    (
        "Bibasilar opacities, left greater than right.",
        ["Bibasilar opacities, right greater than left."],
    ),
    (
        "Large left and small right pleural effusions.",
        ["Large right and small left pleural effusions."],
    ),
    ("Small left and small right pleural effusions.", []),
    # Number: effusions, with articles and verbs.
    (
        "There is a trace left pleural effusion.",
        [
            "There is a trace right pleural effusion.",
            "There are trace bilateral pleural effusions.",
        ],
    ),
    (
        "An unchanged left effusion is seen.",
        ["An unchanged right effusion is seen.", "Unchanged bilateral effusions are seen."],
    ),
    (
        "There are unchanged bilateral effusions.",
        ["There is an unchanged left effusion.", "There is an unchanged right effusion."],
    ),
    (
        "Edema with bilateral pleural effusions.",
        ["Edema with a left pleural effusion.", "Edema with a right pleural effusion."],
    ),
    (
        "There are mild effusions on both sides.",
        ["There is a mild effusion on the left.", "There is a mild effusion on the right."],
    ),
    ("Two large bilateral pleural effusions.", []),
    # Number: places and mass nouns.
    (
        "Scarring in both lung bases.",
        ["Scarring in the left lung base.", "Scarring in the right lung base."],
    ),
    (
        "There is scarring in the left lung apex.",
        ["There is scarring in the right lung apex.", "There is scarring in both lung apices."],
    ),
    ("There is a nodule in the left apex.", ["There is a nodule in the right apex."]),
    (
        "Bibasilar plate-like atelectasis.",
        ["Left basilar plate-like atelectasis.", "Right basilar plate-like atelectasis."],
    ),
    (
        "Left basilar plate-like atelectasis.",
        ["Right basilar plate-like atelectasis.", "Bibasilar plate-like atelectasis."],
    ),
    ("Right base scarring.", ["Left base scarring.", "Bibasilar scarring."]),
    ("There are 2 left lung nodules.", ["There are 2 right lung nodules."]),
    ("A left basilar opacity.", ["A right basilar opacity."]),
    (
        "Bilateral interstitial opacities.",
        ["Left-sided interstitial opacities.", "Right-sided interstitial opacities."],
    ),
    (
        "Calcified granulomas bilaterally.",
        ["Calcified granulomas on the left.", "Calcified granulomas on the right."],
    ),
    # Denied, normal, gone, asked, guessed.
    ("No left effusion.", []),
    ("The left lung is clear today.", []),
    ("The left costophrenic angle is sharp.", []),
    ("Both lungs are clear and well aerated.", []),
    ("Interval removal of the left PICC.", []),
    ("The right effusion has resolved.", []),
    ("Questionable nodule in the left apex.", []),
    ("Nodule in the left apex?", []),
    ("Density which may represent right pneumonia.", []),
    (
        "Right basilar opacity may represent pneumonia.",
        ["Left basilar opacity may represent pneumonia."],
    ),
    # Not a side, or not one that the other side has.
    ("Central line left in place.", []),
    ("Pacemaker lead in the right ventricle.", []),
    ("Calcified granuloma of the left liver lobe.", []),
    ("Fluid in the right minor fissure, with opacity.", []),
    ("Right and left basilar opacities.", []),
    # What the report gives to the other side already, unless it lies elsewhere in the lung.
    ("Left apical nodule. Right apical nodule.", []),
    ("Left base haze. Scattered opacities.", []),
    (
        "Left effusion. Right nodule.",
        [
            "Right effusion. Right nodule.",
            "Bilateral effusions. Right nodule.",
            "Left effusion. Left nodule.",
        ],
    ),
    (
        "Left apical nodule. Right basilar nodule.",
        ["Right apical nodule. Right basilar nodule.", "Left apical nodule. Left basilar nodule."],
    ),
    # Parts of a sentence stand on their own.
    (
        "Lungs clear, left rib fracture, no effusion.",
        ["Lungs clear, right rib fracture, no effusion."],
    ),
    (
        "Mild cardiomegaly; right apical nodule; left effusion.",
        [
            "Mild cardiomegaly; left apical nodule; left effusion.",
            "Mild cardiomegaly; right apical nodule; right effusion.",
            "Mild cardiomegaly; right apical nodule; bilateral effusions.",
        ],
    ),
]

ZONES = [
    ("Opacity in the left lower lobe.", ["Opacity in the left upper lobe."]),
    (
        "Right upper lobe nodule.",
        ["Right middle lobe nodule.", "Right lower lobe nodule."],
    ),
    ("A lower lobe nodule.", ["An upper lobe nodule."]),
    ("Scarring in both upper lobes.", ["Scarring in both lower lobes."]),
    (
        "Nodule in the left upper zone.",
        ["Nodule in the left mid zone.", "Nodule in the left lower zone."],
    ),
    (
        "Left midlung granuloma.",
        ["Left upper lung granuloma.", "Left lower lung granuloma."],
    ),
    (
        "Dense right mid consolidation.",
        ["Dense right upper consolidation.", "Dense right lower consolidation."],
    ),
    ("Granuloma in the lingula.", ["Granuloma in the left lower lobe."]),
    ("Left lingular scarring.", ["Left lower lobe scarring."]),
    ("Small right apical pneumothorax.", ["Small right basilar pneumothorax."]),
    ("There is a basilar opacity.", ["There is an apical opacity."]),
    ("There is an apical opacity.", ["There is a basilar opacity."]),
    ("Bibasilar scarring.", ["Biapical scarring."]),
    ("Scarring in the lung apices.", ["Scarring in the lung bases."]),
    ("Left base nodule.", ["Left apical nodule."]),
    ("Right lung base mass.", ["Right apical mass."]),
    (
        "Opacity in the left base represents scarring.",
        ["Opacity in the left apex represents scarring."],
    ),
    (
        "Wedge deformity in the lower thoracic spine.",
        [
            "Wedge deformity in the upper thoracic spine.",
            "Wedge deformity in the mid thoracic spine.",
        ],
    ),
    # Denied, normal, guessed; more than one zone; other landmarks; not a zone of the lung.
    ("No upper lobe consolidation.", []),
    ("The lung bases are clear.", []),
    ("There may be an opacity in the left lower lobe.", []),
    ("Opacities in the upper and lower lobes.", []),
    ("Nodule in the left upper lobe over the second rib.", []),
    ("Opacity in the superior segment of the right lower lobe.", []),
    ("Heart at the very upper limits of normal.", []),
    ("Enlarged heart with lower lung volumes.", []),
    ("Surgical clips in the right upper quadrant.", []),
    ("Lordotic apical view shows a nodule.", []),
    ("Degenerative change of the lower thoracic spine.", []),
    ("Mass at the base of the neck.", []),
    # What the report has in the other zone already, on this side or on both.
    ("Left lower lobe nodule. Left upper lobe mass.", []),
    ("Bibasilar scarring. Biapical scars.", []),
    (
        "Left lower lobe nodule. Right basilar mass.",
        [
            "Left upper lobe nodule. Right basilar mass.",
            "Left lower lobe nodule. Right apical mass.",
        ],
    ),
]

DEVICES = [
    (
        "An endotracheal tube ends above the carina.",
        [
            "A tracheostomy tube ends above the carina.",
            "An endotracheal tube ends below the carina.",
        ],
    ),
    (
        "The patient is intubated, with the endotracheal tube above the carina.",
        ["The patient is intubated, with the endotracheal tube below the carina."],
    ),
    ("Tracheostomy in place.", ["Endotracheal tube in place."]),
    ("Enteric tube in place.", ["Gastrostomy tube in place."]),
    (
        "Nasogastric tube with tip in the stomach.",
        ["Nasogastric tube with tip in the distal esophagus."],
    ),
    (
        "Enteric tube courses below the diaphragm.",
        ["Enteric tube ends above the diaphragm."],
    ),
    ("Left PICC in place.", ["Left dialysis catheter in place.", "Left port catheter in place."]),
    (
        "Right Port-A-Cath is unchanged.",
        ["Right PICC is unchanged.", "Right dialysis catheter is unchanged."],
    ),
    (
        "There is a right central line.",
        ["There is a right port catheter.", "There is a right pulmonary artery catheter."],
    ),
    (
        "An IJ catheter is present.",
        ["A subclavian catheter is present."],
    ),
    (
        "Catheter tip in the lower SVC.",
        ["Catheter tip in the right atrium.", "Catheter tip in the brachiocephalic vein."],
    ),
    (
        "Catheter tip at the cavoatrial junction.",
        ["Catheter tip in the right ventricle.", "Catheter tip in the brachiocephalic vein."],
    ),
    ("There is an AICD on the left.", ["There is a pacemaker on the left."]),
    (
        "Pacemaker with its lead in the right ventricle.",
        [
            "Defibrillator with its lead in the right ventricle.",
            "Pacemaker with its lead in the right atrium.",
        ],
    ),
    (
        "Pacemaker with a single lead.",
        ["Defibrillator with a single lead.", "Pacemaker with two leads."],
    ),
    (
        "Median sternotomy wires are grossly intact.",
        ["Sternal fixation plates are grossly intact.", "Median sternotomy wires are fractured."],
    ),
    ("Aortic valve replacement.", ["Mitral valve replacement."]),
    ("Status post CABG.", ["Status post aortic valve replacement."]),
    ("Coronary artery stents.", ["Prosthetic heart valves."]),
    ("Surgical clips in the left axilla.", ["Surgical drains in the left axilla."]),
    ("Two cholecystectomy clips.", ["Two biliary stents."]),
    ("Bilateral breast implants.", ["Bilateral breast tissue expanders."]),
    # Denied, removed, guessed; two devices or positions in one; what the report names elsewhere.
    ("No pacemaker is seen.", []),
    ("The left PICC has been removed.", []),
    ("Interval removal of the chest tube.", []),
    ("There may be a coronary artery stent.", []),
    ("Pacemaker/ICD over the left chest.", []),
    ("Surgical clips consistent with prior mastectomy.", []),
    ("Tip at the SVC/right atrial junction.", []),
    ("A valve and two stents. CABG.", []),
    ("Endotracheal tube in place. Tracheostomy planned.", []),
]


@pytest.mark.parametrize(("before", "after"), SIDES)
def test_sides(before: str, after: list[str]) -> None:
    assert reworded(before, "swap_laterality") == after


@pytest.mark.parametrize(("before", "after"), ZONES)
def test_zones(before: str, after: list[str]) -> None:
    assert reworded(before, "swap_zone") == after


@pytest.mark.parametrize(("before", "after"), DEVICES)
def test_devices(before: str, after: list[str]) -> None:
    assert reworded(before, "swap_device") == after


@pytest.mark.parametrize("kind", ["swap_laterality", "swap_zone"])
def test_a_swap_can_be_undone(kind: str) -> None:
    """Where one word stands for another, the original is among what the result could become."""
    for report in (
        "A vague opacity lies in the left base.",
        "Small right apical pneumothorax.",
        "Nodule in the left upper zone.",
        "There are trace bilateral pleural effusions.",
        "Bibasilar plate-like atelectasis.",
    ):
        for result in reworded(report, kind):
            assert report in reworded(result, kind)
