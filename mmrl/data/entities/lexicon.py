"""Names of findings, devices and anatomy, and adjectives that state a finding of an organ.

The findings of `perturb.terms` come first; those below are further ones, which perturbations do not
exchange. Anatomy follows the lung zones and mediastinal structures of the Fleischner Society's
glossary (Hansell et al. 2008).
"""

import re
from typing import NamedTuple

from mmrl.data.perturb.terms import TERMS, alternatives


class Name(NamedTuple):
    """What a name stands for.

    Attributes:
      kind: finding, device or anatomy.
      name: equal for all names of one thing.
    """

    kind: str
    name: str


# name -> its forms, as `perturb.terms` has them for its own.
_FINDINGS = {
    "low lung volumes": "low lung volumes, low volumes, low lung volume, decreased lung volumes,"
    " diminished lung volumes, reduced lung volumes, shallow inspiration, poor inspiration,"
    " low inspiratory volumes, poor inspiratory effort, low inspiratory effort,"
    " suboptimal inspiration, hypoinflation, hypoventilation, underinflation",
    "lucency": "lucency, lucencies, hyperlucency",
    "emphysema": "bulla, bleb, blebs, copd, chronic obstructive pulmonary disease",
    "bronchiectasis": "bronchiectasis",
    "interstitial disease": "interstitial lung disease, interstitial disease, interstitial changes,"
    " interstitial prominence, interstitial thickening, septal thickening, reticulation,"
    " septal lines, kerley b lines, interstitial pattern, interstitial infiltrates,"
    " interstitial infiltrate",
    "bronchial thickening": "bronchial wall thickening, peribronchial thickening,"
    " bronchial thickening, bronchitis, bronchitic changes",
    "contusion": "contusion, contusions",
    "hemorrhage": "hemorrhage, hematoma",
    "infarct": "infarct, infarction",
    "cyst": "cyst, cysts",
    "fluid collection": "fluid collection, fluid collections, collection, collections",
    "volume overload": "volume overload, fluid overload",
    "crowding": "crowding",
    "chronic change": "chronic lung changes, chronic changes, lung changes, inflammatory changes,"
    " chronic lung disease, chronic interstitial changes",
    "posttraumatic change": "posttraumatic changes, post-traumatic changes, posttraumatic change,"
    " gunshot wound, old trauma",
    "gallstones": "gallstone, gallstones, cholelithiasis",
    "azygos lobe": "azygos lobe, azygos fissure, azygos pseudofissure",
    "findings": "acute finding, acute abnormal findings, significant finding, significant findings,"
    " abnormal findings, abnormal finding, active findings, acute radiographic findings",
    "infection": "infection, infectious process",
    "aspiration": "aspiration",
    "tuberculosis": "tuberculosis",
    "malignancy": "malignancy, neoplasm, carcinoma, cancer, tumor, metastasis, metastases,"
    " metastatic disease, lymphoma",
    "heart failure": "congestive heart failure, heart failure, chf, cardiac decompensation",
    "pulmonary hypertension": "pulmonary arterial hypertension, pulmonary hypertension,"
    " pulmonary artery hypertension",
    "congestion": "cephalization",
    "pleural thickening": "pleural capping, apical capping, pleural scar",
    "pleural disease": "pleural disease, pleural abnormality, pleural abnormalities",
    "effusion": "hemothorax, empyema",
    "emphysema of soft tissue": "subcutaneous emphysema, subcutaneous air, soft tissue air",
    "shift": "mediastinal shift, tracheal deviation, deviation, shift",
    "mass": "mediastinal mass",
    "arthritic change": "osteoarthritis, arthritis, arthrosis, arthropathy",
    "osteophyte": "spur, spurs, spurring",
    "degenerative change": "degenerative joint disease, degenerative spurring, spondylolisthesis,"
    " disc space narrowing, disk space narrowing, endplate sclerosis",
    "sclerosis": "sclerosis",
    "deformity": "wedging, pectus excavatum, pectus carinatum, pectus",
    "dislocation": "subluxation, separation",
    "distention": "distention, distension",
    "swelling": "soft tissue swelling, swelling",
    "fracture": "fractured rib, fractured ribs, fracture deformity, fracture deformities",
    "cardiomegaly": "enlarged heart, enlarged cardiac silhouette, cardiac silhouette enlargement,"
    " enlarged cardiomediastinal silhouette, enlargement of the cardiac silhouette,"
    " heart enlargement",
    "mediastinal widening": "widened mediastinum, widening of the mediastinum",
    "tortuosity": "tortuous, uncoiling, uncoiled, unfolded",
    "ectasia": "ectatic",
    "hyperinflation": "hyperinflated, hyperexpanded, hyperaerated, overinflated, overexpanded,"
    " hyperinflation, hyperaeration, flattened diaphragms, flattening, flattened",
    "scoliosis": "scoliotic",
    "osteopenia": "osteopenic, osteoporotic, demineralized",
    "atelectasis": "atelectatic",
    "emphysematous change": "emphysematous",
    "collapse": "collapsed",
    "blunting": "blunted",
    "congestion of vessels": "congested, engorged",
    "prominence": "prominence, prominent, fullness",
    "thickening": "thickening",
    "enlargement": "enlargement",
    "irregularity": "irregularity, irregularities",
    "narrowing": "narrowing, stenosis",
    "surgical change": "postsurgical changes, postoperative changes, surgical changes,"
    " post-surgical changes, postsurgical change, postoperative change",
}
# Adjectives are names of the concept of their noun.
_SAME = {"emphysematous change": "emphysema", "congestion of vessels": "congestion"}
_DEVICES = {
    "sternotomy wires": "sternotomy, median sternotomy",
    "pacemaker": "pacemaker generator, pacer generator",
    "catheter": "catheter, catheters",
    "line": "line",
    "tube": "tube, tubes",
    "drain": "drain, drains",
    "lead": "leads, lead",
    "hardware": "hardware, screws, screw, plate and screws, rods, orthopedic hardware,"
    " spinal fusion, fixation",
    "sutures": "sutures, suture, staples, suture line",
    "bypass": "cabg, bypass graft, coronary artery bypass",
    "prosthesis": "prosthesis, arthroplasty, implants, implant",
    "foreign body": "bullet, shrapnel, pellets",
    "clips": "clip",
    "wire": "wire, wires",
    "device": "device, devices, stimulator, generator",
}
_ANATOMY = {
    "lung volume": "lung volumes, lung volume, inspiratory effort",
    "lung": "lung, lungs, lung field, lung fields, lung parenchyma, pulmonary parenchyma,"
    " hemithorax, hemithoraces",
    "upper lobe": "upper lobe, upper lobes, upper lung, upper zone, upper lung zone,"
    " upper lung zones, upper lungs",
    "middle lobe": "middle lobe, mid lung, midlung, mid zone, mid lung zone, mid lungs, midlungs",
    "lower lobe": "lower lobe, lower lobes, lower lung, lower zone, lower lung zone,"
    " lower lung zones, lower lungs",
    "lobe": "lobe, lobes",
    "lung base": "lung base, lung bases, base, bases",
    "lung apex": "lung apex, lung apices, apex, apices, pulmonary apex, pulmonary apices",
    "lingula": "lingula",
    "hilum": "hilum, hila, hilar structures, hilar contours, hilar contour, hilar shadows",
    "pleura": "pleura, pleural space, pleural spaces, pleural surfaces, pleural surface",
    "costophrenic angle": "costophrenic angle, costophrenic angles, costophrenic sulcus,"
    " costophrenic sulci, costophrenic recess, cardiophrenic angle",
    "diaphragm": "hemidiaphragm, hemidiaphragms, diaphragm, diaphragms",
    "fissure": "fissure, fissures, minor fissure, major fissure",
    "airway": "airway, airways, bronchus, bronchi",
    "trachea": "trachea",
    "carina": "carina",
    "heart": "heart, heart size, cardiac silhouette, cardiac size, cardiac contour,"
    " cardiac contours, heart silhouette, cardiac shadow, cardiac and mediastinal silhouettes,"
    " cardiac and mediastinal contours, cardiac and mediastinal silhouette, ventricle, atrium,"
    " cardiac apex",
    "cardiomediastinal silhouette": "cardiomediastinal silhouette, cardiomediastinal silhouettes,"
    " cardiomediastinal contours, cardiomediastinal contour, cardiomediastinum,"
    " cardiomediastinal structures",
    "mediastinum": "mediastinum, mediastinal contours, mediastinal contour,"
    " mediastinal silhouette, mediastinal structures, superior mediastinum",
    "aorta": "aorta, thoracic aorta, aortic arch, aortic knob, descending aorta, ascending aorta,"
    " descending thoracic aorta, arch",
    "vena cava": "superior vena cava, svc, vena cava, cavoatrial junction",
    "pulmonary vessels": "pulmonary vasculature, pulmonary vascularity, pulmonary vessels,"
    " vasculature, vascularity, pulmonary vascular markings, vascular markings, vessels",
    "pulmonary artery": "pulmonary artery, pulmonary arteries",
    "interstitium": "interstitium",
    "lymph node": "lymph node, lymph nodes",
    "spine": "spine, thoracic spine, lumbar spine, cervical spine, thoracolumbar spine,"
    " thoracic vertebra, vertebra, vertebrae, vertebral body, vertebral bodies, t-spine",
    "rib": "rib, ribs",
    "clavicle": "clavicle, clavicles",
    "shoulder": "shoulder, shoulders, acromioclavicular joint, acromioclavicular joints,"
    " glenohumeral joint, humerus, humeral head, scapula",
    "sternum": "sternum",
    "bone density": "bone density, bone mineral density, bone mineralization",
    "bones": "bones, bony structures, osseous structures, skeletal structures, bony thorax,"
    " osseous thorax, bony skeleton, skeleton, visualized bony structures",
    "soft tissue": "soft tissues, soft tissue, chest wall, breast, axilla, neck",
    "abdomen": "abdomen, stomach, bowel, colon, liver, spleen, right upper quadrant,"
    " left upper quadrant, upper abdomen, gallbladder",
}


def _parse() -> dict[str, Name]:
    names = {
        text: Name("device" if term.family == "device" else "finding", term.concept)
        for text, term in TERMS.items()
    }
    for kind, listed in (("finding", _FINDINGS), ("device", _DEVICES), ("anatomy", _ANATOMY)):
        for name, forms in listed.items():
            for form in forms.split(","):
                names.setdefault(form.strip(), Name(kind, _SAME.get(name, name)))
    return names


NAMES: dict[str, Name] = _parse()
"""A name, in lower case with single blanks -> what it stands for."""

NAMED = re.compile(
    rf"(?<![\w-])(?:{alternatives(sorted(NAMES, key=len, reverse=True))})(?![\w-])", re.IGNORECASE
)
"""Matches the longest name at a position."""

CHOICES: dict[str, tuple[str, ...]] = {
    kind: tuple(sorted({name for found, name in NAMES.values() if found == kind}))
    for kind in ("finding", "device", "anatomy")
}
"""Kind -> all names of that kind, sorted."""


class Adjective(NamedTuple):
    """An adjective that states, of some organs, a finding; or that denies it ("normal").

    Attributes:
      organs: names of the anatomy of which it does.
      words: a pattern of the adjective.
      finding: what it states.
      denies: whether it denies the finding.
    """

    organs: frozenset[str]
    words: re.Pattern[str]
    finding: str
    denies: bool = False


def _adjective(organs: str, words: str, finding: str, denies: bool = False) -> Adjective:
    names = frozenset(name.strip() for name in organs.split(","))
    return Adjective(names, re.compile(rf"\b(?:{words})\b", re.IGNORECASE), finding, denies)


_OF_HEART = "heart, cardiomediastinal silhouette"
ADJECTIVES = (
    _adjective(_OF_HEART, r"enlarged|large|increased|prominent|borderline|dilated", "cardiomegaly"),
    _adjective(
        _OF_HEART, r"normal|unremarkable|within normal(?: size)? limits", "cardiomegaly", True
    ),
    _adjective("hilum, pulmonary artery", r"enlarged|dilated", "enlargement"),
    _adjective("aorta", r"enlarged|dilated", "ectasia"),
    _adjective("aorta", r"calcified|atherosclerotic|calcific", "atherosclerosis"),
    _adjective(
        "mediastinum, cardiomediastinal silhouette", r"widened|wide", "mediastinal widening"
    ),
    _adjective("diaphragm", r"elevated|raised|high", "elevation"),
    _adjective("costophrenic angle", r"sharp|clear", "blunting", True),
    _adjective("pleura, fissure", r"thickened", "pleural thickening"),
    _adjective("pulmonary vessels", r"increased|distended|indistinct", "congestion"),
    _adjective("interstitium", r"coarsened|thickened|increased", "interstitial disease"),
    _adjective("trachea", r"deviated|shifted|displaced", "shift"),
    _adjective("lung volume", r"low|decreased|reduced|diminished|small|poor", "low lung volumes"),
    _adjective("bone density", r"decreased|reduced|diminished|low", "osteopenia"),
    _adjective("lung", r"underinflated|hypoinflated|hypoaerated|underexpanded", "low lung volumes"),
)
