"""Changes a device, the position of its tip, or the state of a wire.

* devices, to one of the same role and number: "endotracheal tube" <-> "tracheostomy tube", "PICC"
  -> "dialysis catheter", "pacemaker" <-> "defibrillator", "aortic valve" <-> "mitral valve", the
  vein that a line enters, clips;
* positions: "tip in the SVC" -> "tip in the right atrium", "above the carina" -> "below the
  carina";
* state: "sternotomy wires are intact" -> "... are fractured", one lead or two.

Proper and improper positions are those of Godoy et al. 2012 (Chest Radiography in the ICU, parts 1
and 2). An unspecified central line never becomes a PICC or a dialysis catheter, because these are
central lines.

Not changed: what is denied, removed, questioned or guessed (`claims.asserted`); a device whose
replacement the report names elsewhere; units with two positions, or with the purpose of a device,
which would contradict the new one.
"""

import dataclasses
import functools
import re

from mmrl.data.perturb.claims import asserted, marks, units
from mmrl.data.perturb.edits import Edit, Edits, with_article
from mmrl.data.perturb.report import ParsedReport


@dataclasses.dataclass(frozen=True)
class Rule:
    """A statement on a device, and what replaces it.

    Attributes:
      old: pattern of the text to replace, after its group "keep" if it has one.
      new: its replacements.
      unless: pattern that must not be in the unit.
      absent: pattern that must not be in the report, because the replacement asserts it.
    """

    old: re.Pattern[str]
    new: tuple[str, ...]
    unless: re.Pattern[str] | None = None
    absent: re.Pattern[str] | None = None


def _rule(old: str, new: str, *, unless: str = "", absent: str = "") -> Rule:
    return Rule(
        re.compile(rf"(?<![\w/-])(?:{old})(?![\w/-])", re.I),
        tuple(new.split(", ")),
        re.compile(rf"\b(?:{unless})", re.I) if unless else None,
        re.compile(rf"\b(?:{absent})\b", re.I) if absent else None,
    )


_COURSE = r"tip|pass|cours|extend|descend|below|distal|esoph|stomach|side|termin|ends?\b"
_SVC = (
    r"(?:(?:mid|lower|low|upper|high|proximal|distal|inferior|superior)(?: to (?:mid|lower))? )?"
    r"(?:SVC|superior vena cava|superior XXXX XXXX)"
)
_AT = r"(?P<keep>(?:in|at|over|overlying|overlies|to|within|approximating|near|of|tip) (?:the )?)"
_PURPOSE = r"cabg|prior|previous|\w+ectomy|compatible|consistent|suggest|\w*secondary|marker"

DEVICES: tuple[Rule, ...] = (
    _rule(
        r"(?:endotracheal|et) tube|ett", "tracheostomy tube",
        unless="intubat|main|bronch", absent="tracheostomy",
    ),
    _rule(
        r"tracheostomy(?: tube| cannula)?(?! (?:site|stoma|collar|tract))", "endotracheal tube",
        absent="endotracheal|et tube|ett|intubated",
    ),
    _rule(
        r"(?:nasogastric|orogastric|ng|og|enteric|feeding|dobbhoff) tube", "gastrostomy tube",
        unless=_COURSE, absent="gastrostomy|peg",
    ),
    _rule(
        r"(?:percutaneous )?gastrostomy tube|peg tube", "nasogastric tube",
        absent="nasogastric|orogastric|ng|og|enteric|feeding|dobbhoff",
    ),
    _rule("chest tube", "pigtail pleural catheter", absent="pigtail|pleural catheter"),
    _rule("(?:pleural )?pigtail catheter", "chest tube", absent="chest tubes?"),
    _rule(
        r"(?:upper extremity )?picc?(?: line)?(?: catheter)?", "dialysis catheter, port catheter",
        absent="dialysis|port|mediport|port-a-cath|XXXX-A-XXXX|chest XXXX",
    ),
    _rule(
        r"(?:port-a-cath|XXXX-a-XXXX|mediport|port catheter)(?: catheter)?(?! placement)",
        "PICC, dialysis catheter",
        unless="chest (?:wall )?(?:port|medi|XXXX-)", absent="picc|dialysis",
    ),
    _rule(
        r"(?<!tunneled )(?:central venous )?dialysis catheter", "PICC, port catheter",
        absent="picc|port|mediport",
    ),
    _rule(
        r"(?<!jugular )(?<!subclavian )(?<!ij )(?<!lumen )(?<!picc )(?<!tunneled )"
        r"central(?: venous)? (?:catheter|line)", "port catheter",
        unless="jugular|subclavian|ij|picc|tunnel|lumen", absent="port|mediport|chest XXXX",
    ),
    _rule(
        r"central(?: venous)? (?:catheter|line)", "pulmonary artery catheter",
        unless=f"{_COURSE}|junction|jugular|subclavian|picc|tunnel|lumen|femoral",
        absent="pulmonary artery catheter|swan-ganz",
    ),
    _rule(
        r"(?:internal jugular|ij)(?=(?: (?:central|venous|dual-lumen))* (?:catheter|line))",
        "subclavian", unless="subclavian|clavic", absent="subclavian",
    ),
    _rule(
        r"subclavian(?=(?: (?:central|venous|dual-lumen))* (?:catheter|line))",
        "internal jugular", unless="jugular|ij\b|clavic|subclavian vein", absent="jugular|ij",
    ),
    _rule("pacemaker|pacer", "defibrillator", absent="defibrillator|a?icd"),
    _rule(
        r"(?:implantable (?:cardiac |cardioverter[ -])?)?defibrillator|a?icd", "pacemaker",
        absent="pacemaker|pacer",
    ),
    _rule(r"nerve stimulator", "pacemaker", absent="pacemaker|pacer"),
    _rule(
        r"aortic valve(?= (?:replacement|prosthe\w+))|(?<=prosthetic )aortic valve",
        "mitral valve", absent="mitral",
    ),
    _rule(
        r"mitral valve(?= (?:replacement|prosthe\w+|surgery))|(?<=prosthetic )mitral valve",
        "aortic valve", absent="aortic valve",
    ),
    _rule(
        r"cabg(?! (?:clips|markers?|procedure|graft))", "aortic valve replacement",
        unless="clip|marker|graft|valve|interval", absent="valve|valvuloplasty",
    ),
    _rule(
        r"(?<!sided )coronary(?: artery| vascular)? stent", "prosthetic heart valve", absent="valve"
    ),
    _rule(
        r"(?<!sided )coronary(?: artery| vascular)? stents", "prosthetic heart valves",
        absent="valve",
    ),
    _rule(
        r"(?<=surgical )clips|(?<=mediastinal )clips|(?<=axillary )clips", "drains",
        unless=_PURPOSE, absent="drains?",
    ),
    _rule("cholecystectomy clips", "biliary stents", absent="biliary|stents?"),
    _rule(r"(?<=breast )(?:implants|prostheses)", "tissue expanders", unless="calcif"),
    _rule(r"(?<=breast )(?:implant|prosthesis)", "tissue expander", unless="calcif"),
    _rule(
        r"(?:median |midline )?sternotomy wires", "sternal fixation plates", absent="plates?",
    ),
)  # fmt: skip
"""Device for device."""

FACTS: tuple[Rule, ...] = (
    _rule(
        rf"{_AT}{_SVC}(?! ?/| level)", "right atrium, brachiocephalic vein",
        unless=r"atri|ventric|brachioceph|innominate|azygos|junction|left[- ]sided svc",
    ),
    _rule(
        r"at (?:the )?(?:cavo-?atrial|caval[- ]atrial) junction",
        "in the right ventricle, in the brachiocephalic vein", unless="svc|ventric|superior",
    ),
    _rule(
        rf"{_AT}(?:proximal |upper )?right atrium(?! ?(?:/|and))",
        "right ventricle, superior vena cava", unless="ventric|leads?|pace|icd|svc|junction",
    ),
    _rule(
        r"(?P<keep>leads?(?: tip)? (?:\w+ ){0,3}?(?:in|over|overl\w+) the )right ventricle",
        "right atrium", unless="atri|coronary sinus",
    ),
    _rule(r"above(?= the carina)", "below", unless="below"),
    _rule(r"below(?= the carina)", "above", unless="above"),
    _rule(r"at the (?:level of the )?carina", "at the level of the clavicles", unless="above|belo"),
    _rule(r"(?P<keep>tube .*\b)(?:in|within) the stomach(?: body)?", "in the distal esophagus"),
    _rule(
        r"(?P<keep>tube .*)(?:passes|courses|extends|descends) below(?= the)", "ends above",
        unless="above|and",
    ),
    _rule(
        r"(?P<keep>(?:sternotomy|leads?|wires|hardware|screws?) [^,]{0,30}?)(?:grossly )?intact",
        "fractured", unless="fractur|broken|interrupt|disrupt",
    ),
    _rule(
        r"(?:grossly )?intact(?=[^,]{0,12} (?:sternotomy|leads?|wires|hardware|screws?)\b)",
        "fractured",
        unless="fractur|broken|interrupt|disrupt",
    ),
    _rule("with a single lead", "with two leads"),
    _rule("dual[- ]lead", "single-lead", unless="atri|leads"),
    _rule("single[- ]lead(?= (?:cardiac )?(?:pace|defib|icd))", "dual-lead"),
)  # fmt: skip
"""Positions and states."""

_ANY = frozenset(("tube", "generator", "device", "catheter", "clips"))


@functools.lru_cache(1 << 16)
def _reworded(text: str) -> tuple[tuple[Rule, Edit], ...]:
    """(rule, edit) for every change of a unit."""
    if not any(mark.meaning in _ANY for mark in marks(text)):
        return ()
    found = []
    for rule in (*DEVICES, *FACTS):
        matches = list(rule.old.finditer(text))
        if len(matches) != 1 or (rule.unless and rule.unless.search(text)):
            continue
        match = matches[0]
        start = match.end("keep") if "keep" in rule.old.groupindex else match.start()
        if asserted(text, match.end() - 1) is None:
            continue
        first = not text[:start].strip(" 0123456789.)")
        for new in rule.new:
            cased = new.upper() if text.isupper() else new[0].upper() * first + new[first:]
            found.append((rule, with_article(text, (start, match.end(), cased))))
    return tuple(found)


def candidates(report: ParsedReport) -> list[Edits]:
    """Every change of a device, position or state, see the module."""
    found: list[Edits] = []
    for unit in units(report):
        for rule, (low, high, new) in _reworded(unit.text):
            if rule.absent is None or not rule.absent.search(report.text):
                found.append(((unit.start + low, unit.start + high, new),))
    return found
