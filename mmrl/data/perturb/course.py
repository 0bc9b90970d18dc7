"""Words of course ("stable", "new") in reports: what they qualify, and rules that reverse them."""

import re

from mmrl.data.perturb.edits import Edit, like, with_article
from mmrl.data.perturb.statements import Statement


def _words(alternatives: str) -> str:
    return rf"(?:{'|'.join(alternatives.split())})"


# The nouns that a course word can qualify.
_LESION = _words(
    "nodules? nodul\\w+ mass masses granulomas? granulomata hernia aneurysm lesions? cavity"
)
_GROWING = _words(
    f"{_LESION} effusions? pneumothora\\w+ cardiomegaly osteophytes? enlargement enlarged lucency "
    "lymphadenopathy adenopathy volumes?"
)
_WORSENING = _words(
    "opacit\\w+ densit\\w+ infiltrates? atelecta\\w+ consolidat\\w+ airspace disease edema "
    "congestion scarring scars? fibro\\w+ emphysema\\w* degenerative scoliosis \\w+scoliosis "
    "kyphosis calcifications? blunting thickening elevation elevated tortuo\\w+ unfolding ectasia "
    "ectatic prominence prominent markings hyperinflat\\w+ hyperexpan\\w+ deformit\\w+ fractures? "
    "spondylosis arthritic curvature deviation shift wedging compression pneumonia interstitial "
    "eventration sclerosis osteopenia atherosclero\\w+ crowding engorgement collapse "
    "retrolisthesis anterolisthesis tenting obscuration capping irregularit\\w+ bull(?:a|ae|ous)"
)
_DEVICE = _words(
    "sternotomy clips? wires? pacemaker pacer generator picc catheter tube line port port-a-cath "
    "icd aicd defibrillator stents? sutures? hardware prosthesis valve leads? postsurgical "
    "post-surgical postoperative surgical cholecystectomy fixation fusion coils? foreign"
)
_STRUCTURE = _words(
    "appearance silhouettes? mediastin\\w+ cardiomediastin\\w+ contours? heart cardiac hilar hila "
    "hilum configuration position alignment structures size vascularity vasculature lungs?"
)


def compiled(pattern: str) -> re.Pattern[str]:
    """`pattern` as whole words, whatever their case."""
    return re.compile(rf"\b{pattern}\b", re.IGNORECASE)


_FINDING = rf"(?:{_GROWING}|{_WORSENING})"
IS_LESION, IS_GROWING, IS_WORSENING, IS_DEVICE, IS_STRUCTURE, IS_FINDING = map(
    compiled, (_LESION, _GROWING, _WORSENING, _DEVICE, _STRUCTURE, _FINDING)
)
ADJECTIVE = r"(?:enlarged|elevated|prominent|tortuous|ectatic|dilated|increased)"

HEDGED = re.compile(
    r"\b(?:may|might|could|possibl\w+|probabl\w+|likely|question\w*|versus|vs|or|cannot|if|"
    r"recommend\w*|evaluat\w+|rule|favor\w*|presumably|please|correlat\w+|history|would|"
    r"potential\w*|concern\w*|suspect\w*)\b|\?|\bto\s+(?:slightly\s+)?$|/$",
    re.IGNORECASE,
)


_PRIOR = (
    r"(?:\s+in\s+(?:size|number))?\s+(?:from|since|(?:as\s+)?compared\s+(?:to|with)|than\s+(?:on\s+)?)"
    r"\s*(?:the\s+|most\s+)*(?:prior|previous|xxxx|last|recent|comparison)"
)
_OLD_ONE = r"(?:old|remote|healed|healing|chronic|prior)"
_BROKEN = r"(?:fractures?|fracture\s+deformit(?:y|ies)|injur(?:y|ies)|deformit(?:y|ies))"
_CHANGED = "(?:seen|noted|identified|visualized|demonstrated|observed)"
_NOUNS = r"(?:(?!(?:of|in|at|on|with|and|or|is|are|to|for|from|since)\b)[\w/-]+\s+){0,4}?"

# Words, one of which a sentence must have -> rules (pattern, replacement of its group x). Rules
# with "!" also apply in negated spans, the others do not. Rules with "~" make something new; they
# do not apply to a sentence with another word for something old.
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "change changes": (
        (
            r"!(?P<x>no\s+((?:significant|appreciable|substantial)\s+)?(?:interval\s+)?(changes?))"
            r"(?=\s*(?:[.,;]|$|(?:in|from|since|compared|of|when|is|has)\b))",
            r"\2interval \3",
        ),
        (
            r"!(?P<x>without\s+((?:significant|appreciable)\s+)?(?:interval\s+)?change)"
            r"(?=\s*(?:[.,;]|$|(?:in|from|since|compared|of)\b))",
            r"with \2interval change",
        ),
    ),
    "changed": ((r"!(?:has|have|is|are)\s+(?P<x>not\s+(significantly\s+)?changed)", r"\2changed"),),
    "resolved cleared": (
        (r"!(?P<x>has\s+(?:\w+ly\s+)?(?:resolved|cleared))(?=\s*[.,;]?\s*$)", "persists"),
        (r"!(?P<x>have\s+(?:\w+ly\s+)?(?:resolved|cleared))(?=\s*[.,;]?\s*$)", "persist"),
        (
            r"!(has|have)\s+(?P<x>(?:\w+ly\s+)?(?:resolved|cleared))(?=\s+(?:in|since)\b)",
            "worsened",
        ),
    ),
    "developed": ((r"~(?:has|have)\s+(?P<x>(?:newly\s+)?developed)", "resolved"),),
    "development": ((r"(?P<x>development\s+of)", "resolution of"),),
    "resolution": ((r"!interval\s+(?P<x>resolution\s+of)", "worsening of"),),
    "improvement": (
        (r"(?P<x>improvement\s+(?:in|of))", "worsening of"),
        (r"interval\s+(?P<x>improvement)(?=\s*[.,;])", "worsening"),
    ),
    "worsening": (
        (r"interval\s+(?P<x>worsening\s+(?:of|in))", "improvement in"),
        (rf"(?P<x>worsening)(?=\s+{_NOUNS}{_FINDING})", "improving"),
    ),
    "improving": ((rf"(?P<x>improving)(?=\s+{_NOUNS}{_FINDING})", "worsening"),),
    "increase": ((r"interval\s+(?P<x>increase)(?=\s+in\b)", "decrease"),),
    "decrease": ((r"interval\s+(?P<x>decrease)(?=\s+in\b)", "increase"),),
    "enlargement": ((r"interval\s+(?P<x>enlargement\s+(?:of|in))", "decrease in size of"),),
    "removal": ((r"!(?P<x>interval\s+(?:xxxx\s+)?removal\s+of)", "interval placement of"),),
    "placement": (
        (
            r"(?P<x>interval\s+placement\s+of)(?!.*\b(?:tips?|with|project\w*|terminat\w*)\b)",
            "interval removal of",
        ),
    ),
    "improved": (
        (r"(?:has|have|appears?)\s+(?:\w+ly\s+)?(?P<x>improved)", "worsened"),
        (rf"(?P<x>improved)(?=\s+{_NOUNS}(?:aeration|{_FINDING}))", "worsened"),
        (rf"(?<!normal, )(?P<x>improved)(?={_PRIOR})", "worsened"),
    ),
    "worsened": (
        (r"(?:has|have|appears?)\s+(?:\w+ly\s+)?(?P<x>worsened)", "improved"),
        (rf"(?P<x>worsened)(?=\s+{_NOUNS}{_FINDING})", "improved"),
        (rf"(?P<x>worsened)(?={_PRIOR})", "improved"),
    ),
    "progressed": ((r"(?:has|have)\s+(?:\w+ly\s+)?(?P<x>progressed)", "improved"),),
    "increased": (
        (r"(?:has|have)\s+(?:\w+ly\s+)?(?P<x>increased)", "decreased"),
        (rf"(?P<x>increased)(?={_PRIOR})", "decreased"),
    ),
    "decreased": (
        (r"(?:has|have)\s+(?:\w+ly\s+)?(?P<x>decreased)", "increased"),
        (rf"(?P<x>decreased)(?={_PRIOR})", "increased"),
    ),
    "increasing": ((rf"(?P<x>increasing)(?=\s+{_NOUNS}{_FINDING})", "decreasing"),),
    "decreasing": ((rf"(?P<x>decreasing)(?=\s+{_NOUNS}{_FINDING})", "increasing"),),
    "enlarging": ((rf"(?P<x>enlarging)(?=\s+{_NOUNS}{_FINDING})", "shrinking"),),
    "larger": ((rf"(?P<x>larger)(?={_PRIOR})", "smaller"),),
    "smaller": ((rf"(?P<x>smaller)(?={_PRIOR})", "larger"),),
    "worse": ((rf"(?P<x>worse)(?={_PRIOR})", "better"),),
    "persistently": ((rf"~(?P<x>persistently)(?=\s+{ADJECTIVE})", "newly"),),
    "persistent": (
        (rf"~(?P<x>persistent)(?=\s+{_NOUNS}{_FINDING})", "new"),
        (r"(?P<x>is\s+persistent)(?!\s+[a-hj-z])", "has resolved"),
        (r"(?P<x>are\s+persistent)(?!\s+[b-hj-z])", "have resolved"),
    ),
    "persists": ((r"(?P<x>persists)", "has resolved"),),
    "again": (
        (rf"~(?<!once\s)(?P<x>again)(?=\s+{_CHANGED})", "newly"),
        (rf"~(?:is|are)\s+(?P<x>again)(?=\s+(?:mildly\s+)?{ADJECTIVE})", "newly"),
        (rf"~there\s+(?:is|are)\s+(?P<x>again)(?=\s+(?!an?\b){_NOUNS}{_FINDING})", "new"),
    ),
    "redemonstrated": ((r"~(?P<x>redemonstrated)(?=\s*[.,]?\s*$)", "newly demonstrated"),),
    "redemonstration": (
        (
            rf"~(?P<x>redemonstration\s+of)(?=\s+.*\b{_FINDING})",
            "interval development of",
        ),
    ),
    "similar": (
        (
            r"(?P<x>similar(\s+in\s+\w+)?\s+(?:to|from))"
            r"(?=\s+(?:the\s+|patient's\s+)*(?:prior|previous|xxxx))",
            r"different\2 from",
        ),
    ),
    "longer": (
        (rf"!(?:is|are)\s+(?P<x>no\s+longer)(?=\s+(?:{_CHANGED}|present|evident))", "still"),
    ),
    "old remote healed healing chronic prior previous": (
        (rf"~(?P<x>{_OLD_ONE}(?:,?\s+{_OLD_ONE})*)(?=\s+{_NOUNS}{_BROKEN})", "acute"),
        (
            r"~(?<!sequela )(?<!sequela of )(?<!sequelae of )(?<!residuals of )(?<!sequelae from )"
            r"(?P<x>old|prior|previous|remote|chronic)(?=\s+granulomatous\s+"
            r"(?:disease|process|infection))",
            "active",
        ),
        (r"~(?P<x>chronic)(?=[\s-]+appear(?:ing|ance))(?!.*(?:scar|fibro|emphys))", "acute"),
        (r"~appears?\s+(?P<x>chronic)", "acute"),
        (
            rf"~(?P<x>chronic)(?=\s+(?!obstructive|granul|appear){_NOUNS}(?:opacit|infiltrat|edema|interst|"
            r"parenchymal|consolid|deformit|lung\s+changes))",
            "acute",
        ),
        (
            rf"~(?P<x>chronic)(?=\s+(?!appear){_NOUNS}(?:degenerative|blunting|scar|fibr|elevation|atelec|"
            r"emphysematous\s+changes|thicken))",
            "new",
        ),
    ),
    "acute": (
        (rf"(?P<x>acute)(?=\s+{_NOUNS}{_BROKEN})", "old"),
        (rf"(?P<x>acute)(?=\s+{_NOUNS}(?:infiltrat|edema|airspace|deformit|consolid))", "chronic"),
    ),
    "new": ((rf"(?P<x>new)(?=\s+{_NOUNS}{_FINDING})", "unchanged"),),
}

_Rule = tuple[re.Pattern[str], str, bool, bool]


def _parse() -> dict[str, list[_Rule]]:
    rules: dict[str, list[_Rule]] = {}
    for words, listed in _RULES.items():
        parsed = [
            (compiled(find.lstrip("!~")), new, find[0] == "!", find[0] == "~")
            for find, new in listed
        ]
        for word in words.split():
            rules[word] = parsed
    return rules


BY_WORD = _parse()
TRIGGERS = BY_WORD.keys() | {"stable", "unchanged"}
WORD = re.compile(r"[a-z]+")
_LASTING = compiled(
    "(?:stable|unchanged|again|chronic|chronically|old|healed|remote|prior|previous|previously|"
    "sequelae?|known|acute|similar|persistent|redemonstrat\\w+)"
)


def by_rules(statement: Statement, rules: list[_Rule]) -> list[Edit]:
    """The edits of a sentence by these rules, each a change of its own; they may overlap."""
    sentence = statement.text
    found = []
    for pattern, template, in_negation, is_new in rules:
        for match in pattern.finditer(sentence):
            start, end = match.span("x")
            if HEDGED.search(sentence, 0, start):
                continue
            if not in_negation and statement.is_negated(start):
                continue
            if is_new and _LASTING.search(sentence[:start] + " " + sentence[end:]):
                continue
            new = like(match["x"], match.expand(template))
            found.append(with_article(sentence, (start, end, new)))
    return found
