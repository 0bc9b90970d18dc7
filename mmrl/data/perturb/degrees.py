"""Words of degree and size in reports, what they qualify, and their opposites."""

import re

# style -> its words for the levels 0 (weak), 1 (moderate) and 2 (strong); "" where it has none.
STYLES = {
    "size": ("small", "moderate", "large"),
    "severity": ("mild", "moderate", "severe"),
    "extent": ("minimal", "moderate", "extensive"),
    "shape": ("minimal", "moderate", "marked"),
    "severely": ("mildly", "moderately", "severely"),
    "markedly": ("mildly", "moderately", "markedly"),
    "density": ("patchy", "", "dense"),
}
TARGETS = {0: (2,), 1: (2, 0), 2: (0,)}  # or 1, if these would equal the degree of the other side
_WORDS = (
    "mild minimal trace tiny small slight borderline mildly minimally slightly patchy "
    "mild-to-moderate minimal-to-mild small-to-moderate mildly-to-moderately",
    "moderate moderately",
    "severe marked large extensive massive huge severely markedly extensively significantly dense "
    "moderate-to-severe moderate-to-large moderate-to-severely moderately-to-severely",
)
LEVEL = {word: level for level, words in enumerate(_WORDS) for word in words.split()}
TRIGGERS = LEVEL.keys() | {"upper"}
SIZE_WORDS = frozenset(("tiny", "small", "large", "huge", "small-to-moderate"))
DENSITY_WORDS = frozenset(("patchy", "dense"))

# style -> nouns that such a degree qualifies, or adjectives that such an adverb qualifies.
_HEADS = {
    "size": "effusions? pneumothorax pneumothoraces hydropneumothorax hernias? nodules? nodular "
    "mass masses granulomas? granulomata amounts? osteophytes? cavity lesions? bullae? "
    "areas? lucency lucencies lymph adenopathy",
    "severity": "cardiomegaly enlargement edema congestion emphysema emphysematous scoliosis "
    "dextroscoliosis levoscoliosis degenerative arthritic osteoarthritis arthritis osteopenia "
    "demineralization spondylosis spondylotic hyperinflation hyperexpansion hypoinflation "
    "hypoventilation kyphosis tortuosity ectasia dilatation dilation narrowing stenosis crowding "
    "wedging compression curvature dextrocurvature levocurvature copd bronchiectasis interstitial "
    "engorgement vascular cardiac deformity anterolisthesis retrolisthesis wedge pectus "
    "kyphoscoliosis listhesis bronchitic degeneration degenerate "
    "fractures?",
    "extent": "atelectasis atelectatic scarring scar fibrosis fibrotic calcifications? calcific "
    "atherosclerotic atherosclerosis opacity opacities infiltrates? airspace consolidations? "
    "opacification thickening spurring osteophytosis sclerosis sclerotic markings pneumonia "
    "parenchymal spurs density densities reticular streaky streakiness fluid",
    "shape": "blunting prominence elevation eventration unfolding fullness widening deviation "
    "shift flattening asymmetry haziness indistinctness cephalization displacement rotation "
    "tenting bowing angulation obscuration convexity accentuation irregularity uncoiling "
    "coarsening peribronchial cuffing collapse loss",
    "severely": "enlarged hyperinflated hyperexpanded hypoinflated tortuous dilated narrowed "
    "osteopenic scoliotic kyphotic underinflated emphysematous degenerated large",
    "markedly": "elevated prominent low flattened rotated accentuated coarsened displaced widened "
    "distended unfolded thickened increased decreased depressed blunted indistinct hyperlucent "
    "deviated opacified calcified coarse diminished ectatic",
}
ADVERBIAL = ("severely", "markedly")


def _any(*styles: str) -> str:
    return "|".join("|".join(_HEADS[style].split()) for style in styles)


STYLE_OF = {style: re.compile(_any(style), re.I) for style in _HEADS}
NOUNS = tuple(style for style in _HEADS if style not in ADVERBIAL)
NOUN = re.compile(rf"(?<![\w-])(?:{_any(*NOUNS)})(?!\w)", re.I)
ADJECTIVE = re.compile(rf"\s+({_any(*ADVERBIAL)})\b", re.I)
DENSE = re.compile(
    r"\b(?:opacit(?:y|ies)|infiltrates?|consolidations?|opacification|airspace|air space)\b", re.I
)
DEGREE = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(word.replace("-", "[ -]") for word in sorted(LEVEL, key=len, reverse=True))
    + r")(?:[ -]sized)?(?![\w-])",
    re.I,
)
# "Heart size is at the upper limits of normal", "the heart is borderline in size".
BORDERLINE = re.compile(
    r"\b(?:heart|cardiac|cardiomediastinal)\b(?:(?!mediastinum)[\w\s]){0,24}\b(?:is|are|size|silhouette|appears)\s+"
    r"((?:(?:at|on|near)\s+)?(?:the\s+)?upper\s+limits?\s+(?:of\s+)?normal(?:\s+(?:in|for)?\s*size)?"
    r"|borderline(?:\s+in\s+size)?)(?=\s*(?:[.,;]|$|with\b|but\b))",
    re.I,
)
MEASURE = re.compile(r"(?<![\w.,-])(\d{1,3}(?:\.\d)?)([ -]?)(mm|cm)\b", re.I)
MEASURED = re.compile(
    r"\b(?:nodules?|nodular|mass|opacity|density|granuloma|lesion|pneumothorax|effusion|cavity)\b",
    re.I,
)
NOT_MEASURED = re.compile(
    r"\b(?:tube|catheter|tip|carina|line|lead|above|below|displace\w*|distance|thick\w*|was|"
    r"previous\w*|prior|compar\w*|shift|x|by|aort\w+|stent|dimensions?)\b",
    re.I,
)
MILLIMETRES = (12, 16, 20, 24, 28, 45, 60, 80)
LARGEST_NODULE = 30  # mm; larger ones are called masses (Hansell et al. 2008)
SIZE = 100  # added to a size in millimetres, so that it differs from all levels

END = re.compile(  # end of the noun phrase that a degree begins
    r"[.;:()]|\b(?:of|in|at|on|with|is|are|was|were|which|that|without|but|noted|seen|present|"
    r"within|from|to|overlying|throughout|along|involving|since|than|interval|has|have)\b",
    re.I,
)
JOINED = re.compile(r"\s*(?:/|(?:or|to|and|versus|interval|if)\b)", re.I)
AND = re.compile(r",|\band\b", re.I)
ALONE = re.compile(r"\s*(?:[.,;]|$|(?:on|in|at|bilaterally)\b)", re.I)
HEDGED = re.compile(
    r"\b(?:may|might|could|possibl\w+|probabl\w+|likely|suspicious|suspect\w*|question\w*|"
    r"concern\w*|suggest\w*|versus|vs|or|cannot|can't|if|only|recommend\w*|evaluat\w+|rule|"
    r"xxxx represents?|favor\w*|presumably|please|correlat\w+|history|potential\w*|would|"
    r"given)\b|\?|\bto\s+$|/$",
    re.I,
)
RELATIVE = re.compile(
    r"\b(?:interval|since|from|compared|comparison|previous|prior|than|effusions?|nodul\w+|mass|"
    r"opacit\w+|pneumothorax|infiltrates?|xxxx)\b",
    re.I,
)
SIDE = re.compile(r"\b(left|right|bilateral|both|bibasilar)\b", re.I)
CONCEPTS = tuple(
    (re.compile(rf"\b(?:{words})", re.I), concept)
    for concept, words in {
        "heart": "cardiomegaly|cardiac|heart",
        "effusion": "effusion|pleural fluid",
        "pneumothorax": "pneumothora",
        "edema": "edema",
        "consolidation": "consolidation",
        "nodule": "nodul",
    }.items()
)
