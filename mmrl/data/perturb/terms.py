"""Names of findings and devices in reports, with their family and number.

The terms are those of the Fleischner Society's glossary (Hansell et al. 2008), the categories of
the CheXpert labeller (Irvin et al. 2019) and the index headings of Open-i, extended from reports. A
term has no attributes: "pleural effusion", never "small left pleural effusion".
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Term:
    """A name of a finding or device.

    Attributes:
      concept: equal for all names of one finding.
      family: pleura, lung, heart, vessel, bone, abdomen, other or device.
      plural: whether the name is plural.
    """

    concept: str
    family: str
    plural: bool


# family -> concept -> "singular forms | plural forms", forms separated by commas. Mass nouns such
# as "edema" count as singular without an article, see `MASS`.
_FINDINGS: dict[str, dict[str, str]] = {
    "pleura": {
        "effusion": "pleural effusion, effusion, pleural fluid, pleural fluid collection |"
        " pleural effusions, effusions, pleural fluid collections",
        "pneumothorax": "pneumothorax | pneumothoraces",
        "pleural thickening": "pleural thickening |",
        "pleural plaque": "pleural plaque | pleural plaques",
        "pleural scarring": "pleural scarring |",
        "hydropneumothorax": "hydropneumothorax, pleural air collection | pleural air collections",
        "blunting": "blunting |",
    },
    "lung": {
        "consolidation": "airspace consolidation, air space consolidation, alveolar consolidation,"
        " consolidation | airspace consolidations, air space consolidations, consolidations",
        "opacity": "airspace opacity, air space opacity, interstitial opacity, pulmonary opacity,"
        " opacity, opacification, perihilar haze, haze, haziness | airspace opacities,"
        " air space opacities, interstitial opacities, pulmonary opacities, opacities",
        "airspace disease": "airspace disease, air space disease, lung disease,"
        " pulmonary parenchymal disease, parenchymal disease |",
        "infiltrate": "pulmonary infiltrate, infiltrate | pulmonary infiltrates, infiltrates",
        "pneumonia": "bronchopneumonia, pneumonia | pneumonias",
        "edema": "pulmonary edema, interstitial edema, alveolar edema, edema |",
        "congestion": "pulmonary vascular congestion, pulmonary venous congestion,"
        " vascular congestion, congestion, vascular engorgement, vascular redistribution |",
        "atelectasis": "atelectasis, atelectatic change | atelectatic changes",
        "collapse": "lobar collapse, collapse |",
        "nodule": "pulmonary nodule, lung nodule, nodule, nodular opacity, nodular density"
        " | pulmonary nodules, lung nodules, nodules, nodular opacities, nodular densities",
        "mass": "pulmonary mass, lung mass, mass | masses",
        "granuloma": "granuloma | granulomas, granulomata",
        "granulomatous disease": "granulomatous disease, granulomatous infection,"
        " granulomatous calcification | granulomatous changes, granulomatous calcifications",
        "scarring": "scarring, scar, fibrosis | scars, fibrotic changes",
        "emphysema": "emphysema, bullous disease, obstructive pulmonary disease |"
        " emphysematous changes, bullae",
        "volume loss": "volume loss |",
        "cuffing": "peribronchial cuffing |",
        "crowding": "bronchovascular crowding, vascular crowding |",
        "hyperinflation": "hyperinflation, hyperexpansion |",
        "cavity": "cavitary lesion, cavity | cavitary lesions, cavities",
        "interstitial markings": "| interstitial markings, lung markings",
        "lesion": "lesion | lesions",
        "density": "density | densities",
    },
    "heart": {
        "cardiomegaly": "cardiomegaly, cardiac enlargement, enlargement of the heart |",
        "pericardial effusion": "pericardial effusion | pericardial effusions",
    },
    "vessel": {
        "tortuosity": "tortuosity, unfolding |",
        "ectasia": "ectasia |",
        "aneurysm": "aneurysm | aneurysms",
        "atherosclerosis": "atherosclerosis, atherosclerotic calcification |"
        " atherosclerotic calcifications, atherosclerotic changes",
        "adenopathy": "lymphadenopathy, adenopathy |",
        "mediastinal widening": "mediastinal widening |",
        "pneumomediastinum": "pneumomediastinum |",
    },
    "bone": {
        "fracture": "rib fracture, compression fracture, vertebral fracture, fracture |"
        " rib fractures, compression fractures, vertebral fractures, fractures",
        "degenerative change": "degenerative change, degenerative disease,"
        " degenerative disc disease, degenerative disk disease, disc disease, spondylosis,"
        " osteophytosis, osteophyte formation | degenerative changes, degenerative disc changes,"
        " spondylotic changes, hypertrophic changes, endplate changes",
        "osteophyte": "osteophyte | osteophytes",
        "deformity": "compression deformity, wedge deformity, deformity | compression deformities,"
        " wedge deformities, deformities",
        "scoliosis": "scoliosis, dextroscoliosis, levoscoliosis |",
        "kyphosis": "kyphosis |",
        "dislocation": "dislocation | dislocations",
        "osteopenia": "osteopenia, osteoporosis |",
        "bone abnormality": "bony abnormality, osseous abnormality, bone abnormality,"
        " osseus abnormality, skeletal abnormality | bony abnormalities, osseous abnormalities,"
        " bone abnormalities, skeletal abnormalities, bony findings, osseous findings,"
        " bone findings, bony changes, bone lesions, bony lesions, osseous lesions",
        "bone destruction": "bone destruction, bony destruction |",
        "arthritic change": "arthritic change | arthritic changes, arthritic abnormalities",
        "demineralization": "demineralization |",
        "curvature": "curvature |",
    },
    "abdomen": {
        "hernia": "hiatal hernia, hernia | hernias",
        "pneumoperitoneum": "pneumoperitoneum, free air, free intraperitoneal air,"
        " free subdiaphragmatic air, subdiaphragmatic free air, intraperitoneal free air,"
        " intraperitoneal air |",
        "eventration": "eventration |",
        "elevation": "elevation |",
    },
    "other": {
        "abnormality": "cardiopulmonary abnormality, pulmonary abnormality, abnormality |"
        " cardiopulmonary abnormalities, pulmonary abnormalities, abnormalities",
        "disease": "cardiopulmonary disease, pulmonary disease, disease |",
        "process": "cardiopulmonary process, process | processes",
        "findings": "| acute cardiopulmonary findings, acute pulmonary findings, acute findings",
        "calcification": "calcification | calcifications",
        "foreign body": "foreign body | foreign bodies",
    },
}
_DEVICES: dict[str, str] = {
    "endotracheal tube": "endotracheal tube, et tube, ett | endotracheal tubes",
    "tracheostomy tube": "tracheostomy tube, tracheostomy cannula, tracheostomy |",
    "enteric tube": "nasogastric tube, orogastric tube, enteric tube, ng tube, feeding tube,"
    " dobbhoff tube |",
    "chest tube": "chest tube, thoracostomy tube, pigtail catheter | chest tubes",
    "picc": "picc line, picc | piccs",
    "central venous catheter": "central venous catheter, central venous line, central line,"
    " internal jugular catheter, subclavian catheter, ij catheter | central venous catheters",
    "port": "port-a-cath, portacath, mediport, chest port, port catheter | ports",
    "dialysis catheter": "dialysis catheter | dialysis catheters",
    "pacemaker": "dual-lead pacemaker, cardiac pacemaker, pacemaker, pacer | pacemakers",
    "icd": "defibrillator, icd, aicd |",
    "sternotomy wires": "| median sternotomy wires, sternotomy wires, sternal wires",
    "clips": "| surgical clips, mediastinal clips, cabg clips, clips",
    "valve": "prosthetic valve, valve prosthesis | prosthetic valves",
    "stent": "coronary stent, stent | stents",
}


def word_set(text: str) -> frozenset[str]:
    """The set of the words of a text."""
    return frozenset(text.split())


MASS = word_set(
    """
edema congestion atelectasis collapse scarring fibrosis emphysema hyperinflation
hyperexpansion pneumonia consolidation opacification thickening blunting cardiomegaly
adenopathy lymphadenopathy tortuosity ectasia atherosclerosis spondylosis osteopenia
osteoporosis pneumoperitoneum pneumomediastinum air fluid disease enlargement calcification
haze haziness loss cuffing crowding engorgement redistribution widening destruction
demineralization curvature scoliosis dextroscoliosis levoscoliosis kyphosis hyperexpansion
osteophytosis formation unfolding eventration elevation
"""
)
"""Last words of terms that need no article in the singular."""


def _parse() -> dict[str, Term]:
    terms: dict[str, Term] = {}
    families = {**_FINDINGS, "device": _DEVICES}
    for family, concepts in families.items():
        for concept, forms in concepts.items():
            for plural, listed in enumerate(forms.split("|")):
                for form in filter(None, (name.strip() for name in listed.split(","))):
                    terms[form] = Term(concept, family, bool(plural))
    return terms


TERMS: dict[str, Term] = _parse()
"""Name, in lower case with single blanks -> term."""

_LONGEST_FIRST = sorted(TERMS, key=len, reverse=True)


def alternatives(names: list[str]) -> str:
    """A pattern for any of the names, grouped by first letter so that matching is fast."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name[0], []).append(re.escape(name[1:]).replace(r"\ ", r"\s+"))
    return "|".join(f"{first}(?:{'|'.join(rest)})" for first, rest in groups.items())


TERM = re.compile(rf"(?<![\w-])(?:{alternatives(_LONGEST_FIRST)})(?![\w-])", re.IGNORECASE)
"""Matches the longest term at a position."""
