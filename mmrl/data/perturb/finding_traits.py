"""Properties of the findings that `swap_finding` exchanges: number, place, degree and appearance.

Definitions follow the Fleischner Society's glossary (Hansell et al. 2008): consolidation and
atelectasis have a zone, effusion and pneumothorax only a side, edema and emphysema are diffuse.
"""

import dataclasses

from mmrl.data.perturb.terms import word_set


@dataclasses.dataclass(frozen=True)
class Finding:
    """How reports describe a finding.

    Attributes:
      singular, plural: its names; plural is "" if it has none.
      mass: whether the singular takes no article.
      where: the place it can have: "lung" (zone or lobe), "side" (side or base) or "" (none).
      sized: whether its degrees are small and large, not mild and severe.
      attributes: adjectives of appearance that it can have.
    """

    singular: str
    plural: str
    mass: bool
    where: str
    sized: bool
    attributes: frozenset[str]


ROUND = ("nodule", "mass", "granuloma")
"""Focal findings, which need a place within the lung."""
VAGUE = ("opacity", "airspace disease", "infiltrate", "atelectasis", "scarring")
"""Names that may all describe the same shadow."""


def _table() -> dict[str, Finding]:
    shadow = word_set("patchy dense hazy streaky linear basilar bibasilar apical")
    band = word_set("patchy linear streaky basilar bibasilar subsegmental discoid plate-like")
    round_ = word_set("calcified noncalcified dense rounded basilar apical")
    none: frozenset[str] = frozenset()
    rows = (
        (
            "effusion",
            "pleural effusion",
            "pleural effusions",
            "side",
            word_set("basilar loculated"),
        ),
        ("pneumothorax", "pneumothorax", "pneumothoraces", "side", word_set("basilar apical")),
        ("opacity", "opacity", "opacities", "lung", shadow),
        ("infiltrate", "infiltrate", "infiltrates", "lung", shadow),
        ("nodule", "nodule", "nodules", "lung", round_),
        ("mass", "mass", "masses", "lung", round_),
        ("granuloma", "granuloma", "granulomas", "lung", round_),
        ("hernia", "hiatal hernia", "", "", none),
        ("consolidation", "consolidation", "consolidations", "lung", shadow),
        ("airspace disease", "airspace disease", "", "lung", shadow),
        ("pneumonia", "pneumonia", "", "lung", shadow - {"linear"}),
        ("atelectasis", "atelectasis", "", "lung", band),
        ("scarring", "scarring", "", "lung", word_set("linear basilar bibasilar apical biapical")),
        ("pleural thickening", "pleural thickening", "", "side", word_set("apical biapical")),
        ("edema", "pulmonary edema", "", "", word_set("diffuse interstitial")),
        ("congestion", "vascular congestion", "", "", none),
        ("emphysema", "emphysema", "", "", none),
        ("hyperinflation", "hyperinflation", "", "", none),
        ("adenopathy", "lymphadenopathy", "", "", none),
        ("cardiomegaly", "cardiomegaly", "", "", none),
    )
    counted = ("effusion", "pneumothorax", "opacity", "infiltrate", "hernia", *ROUND)
    return {
        concept: Finding(one, many, concept not in counted, where, concept in counted, appearance)
        for concept, one, many, where, appearance in rows
    }


FINDINGS = _table()
"""Concept of `terms` -> its properties."""
