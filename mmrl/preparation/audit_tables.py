"""The numbers of an audit as tables, for the terminal and the page."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmrl.preparation.survey import QUANTILES

_MOST_LABELS = 20  # labels in the table; the JSON holds all

SAME = {
    "text": "same text",
    "study": "same study",
    "text_or_study": "same text or study (never negatives in mmrl)",
    "nearly_text": "nearly the same text",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      topic: heading of the page below which it is shown.
      title: title of the table.
      header, rows: cells; a cell that begins with two spaces is a detail of the row above.
      numbers: columns that are aligned right.
      note: text below the table.
    """

    topic: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    note: str = ""


def percent(share: float) -> str:
    """A percentage with one decimal; "< 0.1 %" and "> 99.9 %" instead of rounding to 0 and 100."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def of(part: int, whole: int) -> str:
    """ "12 (3.4 %)"."""
    return f"{part:,} ({percent(part / whole)})" if whole else f"{part:,}"


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Yields all tables of one corpus, in order."""
    yield _origin(found["origin"], found["counts"]["all"])
    yield from _records(found)
    yield from _provenance(found["provenance"])
    yield from _images(found["images"])
    yield from _labels(found["labels"])
    yield from _lengths(found["lengths"], found["tokenizer"])
    yield from _repeats(found["repeats"])
    yield _false_negatives(found["false_negatives"])
    yield _masked(found["deidentification"])
    yield from _crossing(found["crossing"])


def _listed(counts: Mapping[str, int], most: int = 6) -> str:
    parts = [f"{name} {number:,}" for name, number in list(counts.items())[:most]]
    more = len(counts) - most
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _origin(origin: Mapping[str, Any], total: Mapping[str, Any]) -> Table:
    rows = [
        ("title", origin["title"] or "not stated"),
        ("source", _listed(origin["source"])),
        ("version", _listed(origin["version"])),
        ("licence (records)", _listed(origin["licences"])),
        ("access", _listed(origin["access"])),
        ("may be redistributed", of(origin["redistributable_records"], total["records"])),
        ("language", _listed(origin["languages"])),
        ("official split", _listed(origin["split_official"])),
        ("leakage unit known", percent(total["leakage_unit_known_share"])),
        ("refused in preparation", f"{origin['rejected']:,}"),
        *((f"  {reason}", f"{number:,}") for reason, number in origin["rejects"].items()),
        *(("warning", text) for text in origin["warnings"]),
    ]
    return Table("Origin", "Origin and terms", ("", ""), rows)


def _records(found: Mapping[str, Any]) -> Iterator[Table]:
    counts, covered = found["counts"], found["sections"]
    names = {
        "records": "records",
        "patients": "patients",
        "studies": "studies",
        "leakage_units": "leakage units",
        "images": "images",
        "records_without_image": "records without image",
        "records_without_text": "records without text",
        "records_with_prior": "records with a prior study",
    }
    splits = list(counts)
    columns = range(1, len(splits) + 1)
    yield Table(
        "Records",
        "Records by split",
        ("", *splits),
        [(shown, *(f"{counts[s][name]:,}" for s in splits)) for name, shown in names.items()],
        numbers=columns,
    )
    kinds = {
        "both": "findings and impression",
        "findings_only": "findings only",
        "impression_only": "impression only",
        "neither": "neither",
    }
    rows = [
        (shown, *(of(covered[s][name], covered[s]["records"]) for s in splits))
        for name, shown in kinds.items()
    ]
    rows += [
        (
            f"section {name}",
            *(of(covered[s]["sections"][name], covered[s]["records"]) for s in splits),
        )
        for name in covered["all"]["sections"]
    ]
    yield Table("Records", "Which sections hold text", ("", *splits), rows, numbers=columns)
    rows = [
        (name, of(entry["records"], counts["all"]["records"]), _values(entry))
        for name, entry in found["attributes"].items()
    ]
    if rows:
        yield Table("Records", "Attributes", ("", "records", "values"), rows, (1,))


def _provenance(sections: Mapping[str, Any]) -> Iterator[Table]:
    """Who wrote the texts of each section; no table where all came with the corpus."""
    if not sections:
        return
    rows = [
        (
            name,
            f"{one['texts']:,}",
            of(one["own"], one["texts"]),
            of(one["synthetic"], one["texts"]),
            _listed(one["by"]) or "none",
        )
        for name, one in sections.items()
    ]
    header = ("section", "texts", "of the corpus", "synthetic", "added, by")
    yield Table("Records", "Who wrote the texts", header, rows, numbers=(1, 2, 3))


def _values(entry: Mapping[str, Any]) -> str:
    """A summary of the values of an attribute."""
    if "values" in entry:
        return _listed(entry["values"], len(entry["values"]))
    if "numbers" in entry:
        side = entry["numbers"]
        return (
            f"{side['min']:g} to {side['max']:g}, median {side['p50']:g},"
            f" half from {side['p25']:g} to {side['p75']:g}"
        )
    return f"{entry['distinct']:,} distinct"


def _images(images: Mapping[str, Any]) -> Iterator[Table]:
    total = sum(images["projections"].values())
    if not total:
        yield Table("Images", "Images", ("", ""), [("images", "none: a corpus of text")])
        return
    rows = [("projections", _listed(images["projections"], 8))]
    rows.append(("source of the projection", _listed(images["projection_sources"])))
    counts = images["per_record"].items()
    rows.append(("images per record", ", ".join(f"{k}: {n:,} records" for k, n in counts)))
    for name in ("widths", "heights"):
        side = images[name]
        rows.append(
            (
                f"{name} as distributed",
                f"{side['min']:.0f} to {side['max']:.0f}, median {side['p50']:.0f} pixels",
            )
        )
    rows.append(("most common sizes", _listed(images["most_common_sizes"], 5)))
    rows.append(("with pixel spacing", of(images["with_pixel_spacing"], total)))
    stored = ", ".join(f"{name} {value}" for name, value in images["stored"].items())
    rows.append(("stored as", stored or "not stated"))
    if images["stored_bits"]:
        rows.append(("bits (of the samples)", _listed(images["stored_bits"])))
    if pixels := images["pixels"]:
        for name in ("mean", "deviation"):
            shown = ", ".join(f"{value:.3f}" for value in pixels[name])
            rows.append((f"{name} of red, green, blue ({pixels['images']:,} images)", shown))
    rows.append(("records with boxes", f"{images['records_with_boxes']:,}"))
    if images["boxes"]:
        rows.append(("boxes", f"{images['boxes']:,}"))
    rows.append(("records with masks", f"{images['records_with_masks']:,}"))
    yield Table("Images", "Images", ("", ""), rows)


def _labels(labels: Mapping[str, Any]) -> Iterator[Table]:
    whole = labels["all"]
    if not whole["labelled"]:
        yield Table("Labels", "Labels", ("", ""), [("labels", "none: no record is labelled")])
        return
    splits = [split for split in labels if labels[split]["labelled"]]
    ranked = sorted(whole["labels"], key=lambda name: (-whole["labels"][name]["present"], name))
    rows = []
    for name in ranked:
        every = whole["labels"][name]
        shares = (
            percent(labels[s]["labels"][name]["present"] / labels[s]["labelled"]) for s in splits
        )
        counts = (f"{every[word]:,}" for word in ("present", "absent", "uncertain", "not_stated"))
        rows.append((name, *counts, *shares))
    header = ("label", "present", "absent", "uncertain", "blank", *(f"in {s}" for s in splits))
    note = (
        f"{of(whole['labelled'], whole['records'])} of the records have a stated label; the last"
        " columns are the shares of the labelled records of a split in which the label is present."
    )
    if len(rows) > _MOST_LABELS:
        note += f" The {_MOST_LABELS} most frequent of {len(rows)}."
    columns = range(1, len(header))
    yield Table("Labels", "Labels", header, rows[:_MOST_LABELS], columns, note)


def _lengths(lengths: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Iterator[Table]:
    quantiles = tuple(f"p{quantile}" for quantile in QUANTILES)
    header = ("", "texts", "mean", *quantiles, "longest")
    for unit in ("words", "tokens"):
        rows = []
        for name, entry in lengths.items():
            if not entry["words"]["n"] or unit not in entry:
                continue
            values = entry[unit]
            rows.append(
                (
                    _shown(name),
                    f"{values['n']:,}",
                    f"{values['mean']:.1f}",
                    *(f"{values[q]:.0f}" for q in quantiles),
                    f"{values['max']:,.0f}",
                )
            )
        note = _tokenizer(tokenizer) if unit == "tokens" else ""
        if rows or note:
            yield Table("Lengths", f"Length in {unit}", header, rows, range(1, len(header)), note)
    limits = list(next((e["truncated"] for e in lengths.values() if "truncated" in e), {}))
    rows = [
        (
            _shown(name),
            *(
                f"{percent(entry['truncated'][limit]['share'])}"
                f" / {percent(entry['truncated'][limit]['tokens_lost'])}"
                for limit in limits
            ),
        )
        for name, entry in lengths.items()
        if "truncated" in entry
    ]
    if rows:
        yield Table(
            "Lengths",
            "Truncated at a number of tokens: share of texts / share of tokens",
            ("", *limits),
            rows,
            range(1, len(limits) + 1),
        )


def _tokenizer(tokenizer: Mapping[str, Any]) -> str:
    if "missing" in tokenizer:
        return f"Tokens are not counted: {tokenizer['missing']}."
    size = f"{tokenizer['vocab_size']:,} pieces"
    if "file" in tokenizer:
        return f"Tokens of {tokenizer['file']}, {size}, including the marks that it adds."
    records = "the train split" if tokenizer["trained_on"] == "train" else "all records"
    return (
        f"Tokens of a {tokenizer['model_type']} model that was trained on {records} with the"
        f" defaults of training ({size}), including begin and end marks."
    )


def _shown(name: str) -> str:
    return "composed text" if name == "text" else name


def _repeats(repeats: Mapping[str, Any]) -> Iterator[Table]:
    texts, images, said = repeats["texts"], repeats["images"], repeats["sentences"]
    rows: list[tuple[str, ...]] = []
    if images["images"]:
        exact, near = images["exact"], images["near"]
        rows += [
            ("images with equal pixels", of(exact["repeated"], exact["items"]), _sets(exact)),
            ("  of several patients", f"{exact['of_several_patients']:,} pictures", ""),
            (
                "images that look the same",
                of(near["images"], images["images"]),
                f"{near['same_picture_pairs']:,} of {near['checked_pairs']:,} compared pairs, of"
                f" {near['candidate_pairs']:,} whose hashes differ in up to {near['radius']} bits",
            ),
            ("images without structure", f"{images['flat']:,}", "black, white or noise"),
        ]
    exact, near = texts["exact"], texts["near"]
    rows += [
        ("records of equal composed text", of(exact["repeated"], exact["items"]), _sets(exact)),
        (
            "  nearly equal",
            of(near["repeated"], exact["items"]),
            f"Jaccard {near['threshold']} of {near['shingle_words']}-word shingles; largest chain"
            f" {near['largest']:,}",
        ),
    ]
    rows += [
        (f"  equal {name}", of(entry["repeated"], entry["items"]), _sets(entry))
        for name, entry in texts["sections"].items()
        if entry["items"]
    ]
    rows += [
        (
            "sentences that recur in another record",
            percent(said["recurring_share"]),
            f"{said['sentences']:,} sentences, {said['distinct']:,} distinct,"
            f" {said['per_record']:.1f} a record",
        ),
        ("  the 100 most frequent", percent(said["top_100_share"]), "of all sentences"),
        (
            "records of which every sentence recurs",
            percent(said["records_all_recurring_share"]),
            "",
        ),
    ]
    note = "Case, punctuation and layout are ignored when texts are compared."
    yield Table("Repetition", "Duplicates", ("", "", ""), rows, (1,), note)
    for title, listed in (("texts", texts["top"]), ("sentences", said["top"])):
        if listed:
            rows = [(f"{entry['count']:,}", _cut(entry["text"])) for entry in listed]
            yield Table("Repetition", f"Most frequent {title}", ("times", ""), rows, (0,))


def _cut(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[:length]} [...]"


def _sets(entry: Mapping[str, Any]) -> str:
    return f"{entry['sets']:,} sets, largest {entry['largest']:,}" if entry["sets"] else ""


def _false_negatives(found: Mapping[str, Any]) -> Table:
    shares = found["shares"]
    sizes = list(next(iter(shares.values()), {}))
    rows = [
        (
            SAME.get(name, f"same {name.removeprefix('section.')}"),
            f"{found['items'][name]:,}",
            *(percent(share) for share in entry.values()),
        )
        for name, entry in shares.items()
    ]
    split = "the train split" if found["split"] == "train" else "all records (no train split)"
    note = (
        f"Expected share of the items of a batch, drawn from {split} without replacement, that"
        " equal another item of it. Items with the same text or study are never negatives of each"
        " other; all other equal items are false negatives. Batches above the number of items"
        " contain all items."
    )
    header = ("batch of", "items", *sizes)
    return Table("False negatives", "False negatives", header, rows, range(1, len(header)), note)


def _masked(found: Mapping[str, Any]) -> Table:
    rows = [
        (
            _shown(name),
            f"{entry['texts']:,}",
            percent(entry["records_share"]),
            percent(entry["words_share"]),
            _listed(entry["forms"]),
        )
        for name, entry in found.items()
        if entry["texts"]
    ]
    header = ("", "texts", "with a mark", "of words", "marks")
    return Table("De-identification", "De-identification marks", header, rows, (1, 2, 3))


def _crossing(found: Mapping[str, Any]) -> Iterator[Table]:
    pairs = list(found)
    if not pairs:
        alone = [("splits", "one only")]
        yield Table("Leakage", "Leakage between splits", ("", ""), alone)
        return
    rows = []
    for name in found[pairs[0]]:
        shared = (found[pair][name] for pair in pairs)
        cells = (f"{one['shared']:,} / {of(one['records'], one['of'])}" for one in shared)
        rows.append((name.replace("_", " "), *cells))
    note = (
        "Number that both splits contain / records of the second split with one of them. Patients,"
        " studies and leakage units must be 0; equal images or texts may be duplicates with other"
        " patient ids."
    )
    yield Table(
        "Leakage", "Leakage between splits", ("", *pairs), rows, range(1, len(pairs) + 1), note
    )
