"""The cautions of an audit: facts about a corpus that could mislead training or evaluation."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmrl.preparation.audit_tables import of, percent

_SHARE = 0.05  # smaller shares of records are not mentioned


def _access(origin: Mapping[str, Any], records: int) -> Iterator[str]:
    """A caution when the page of the audit must not be shown to others."""
    if origin["redistributable_records"] < records:
        terms = ", ".join(origin["licences"])
        way = ", ".join(origin["access"])
        yield (
            "This page shows reports and images of a corpus whose redistribution is not permitted"
            f" (licence {terms}; access {way}): keep it with the corpus."
        )


def _splits(found: Mapping[str, Any]) -> Iterator[str]:
    """Cautions about the division into splits."""
    counts = found["counts"]
    for split in ("train", "val", "test"):
        if split not in counts:
            yield f"There is no record in {split}."
    for pair, shared in found["crossing"].items():
        for name in ("patients", "studies", "leakage_units", "images", "texts"):
            hit = shared[name]
            if hit["records"] and (name != "texts" or hit["records"] >= _SHARE * hit["of"]):
                first, _, second = pair.partition("/")
                records = of(hit["records"], hit["of"])
                yield f"{records} records of {second} share {name.replace('_', ' ')} with {first}."
    known = counts["all"]["leakage_unit_known_share"]
    if known < 1:
        yield (
            f"Only {percent(known)} of the records state their leakage unit; each of the others is"
            " taken as a unit, so a patient may be in several splits."
        )


def _records(found: Mapping[str, Any]) -> Iterator[str]:
    """Cautions about missing images and texts, rejects and truncation."""
    total, images = found["counts"]["all"], found["images"]
    if total["records_without_text"]:
        blank = of(total["records_without_text"], total["records"])
        yield f"{blank} records have no text to train on."
    if total["records_without_image"]:
        missing = of(total["records_without_image"], total["records"])
        yield f"{missing} records have no image."
    unknown = images["projections"].get("UNKNOWN", 0)
    if unknown:
        yield f"{of(unknown, total['images'])} images have no known projection."
    for section, one in found["provenance"].items():
        if one["synthetic"]:
            yield f"{of(one['synthetic'], one['texts'])} texts of {section!r} are synthetic."
    refused = found["origin"]["rejected"]
    if refused:
        yield f"{refused:,} items were refused when the corpus was prepared; reasons below."
    for limit, cut in found["lengths"]["text"].get("truncated", {}).items():
        if cut["share"] >= _SHARE:
            yield f"A text tower of length {limit} cuts {percent(cut['share'])} of the texts."


def _repeats(found: Mapping[str, Any]) -> Iterator[str]:
    """Cautions about duplicates and false negatives."""
    images, texts = found["repeats"]["images"], found["repeats"]["texts"]
    if images["images"]:
        several = images["exact"]["of_several_patients"]
        if several:
            yield f"{several:,} pictures belong to several patients each, with equal pixels."
        if images["near"]["images"]:
            yield (
                f"{of(images['near']['images'], images['images'])} images look like another one"
                " without being equal: one picture at other sizes or compressions."
            )
        if images["flat"]:
            yield f"{images['flat']:,} images show nothing (black, white or noise)."
    if texts["exact"]["share"] >= _SHARE:
        yield f"{percent(texts['exact']['share'])} of the texts occur more than once."
    shares = found["false_negatives"]["shares"]
    for name, label in (("text_or_study", "text or study"), ("section.impression", "impression")):
        for size, share in list(shares.get(name, {}).items())[-1:]:
            if share >= _SHARE:
                yield (
                    f"In a batch of {size}, {percent(share)} of the items share their {label} with"
                    " another."
                )


def list_cautions(found: Mapping[str, Any]) -> list[str]:
    """All cautions about a corpus; "Nothing stands out." if there is none."""
    lines = [
        *_access(found["origin"], found["counts"]["all"]["records"]),
        *_splits(found),
        *_records(found),
        *_repeats(found),
    ]
    return lines or ["Nothing stands out."]
