"""Counts of a prepared corpus: records, images, labels, sections, and overlaps between splits.

The functions map `Holdings` to numbers for JSON. The key "all" is for all splits together.
"""

import collections
import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmrl.data.reading.shards import provenance_of
from mmrl.preparation.holdings import Holdings

VALUES = {1: "present", 0: "absent", -1: "uncertain", -2: "not_stated"}
_FEW = 8  # greatest number of distinct values of an attribute that are listed
_SAMPLED = 256  # images whose pixels are read
QUANTILES = (5, 25, 50, 75, 95, 99)

Numbers = dict[str, Any]


def parts(held: Holdings) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each split with its rows, then "all" with all rows."""
    yield from held.splits.items()
    yield "all", np.arange(len(held))


def counts(held: Holdings) -> Numbers:
    """Split -> numbers of records, patients, studies, leakage units and images, and of gaps."""
    units = {
        "patients": held.column("patient_id"),
        "studies": held.column("study_id"),
        "leakage_units": held.column("leakage_unit"),
    }
    texts, known = held.composed, held.column("leakage_unit_known")
    priors = held.column("prior_id")
    found: Numbers = {}
    for split, rows in parts(held):
        found[split] = {"records": len(rows)}
        found[split] |= {name: len({ids[row] for row in rows}) for name, ids in units.items()}
        found[split] |= {
            "images": int(held.image_counts[rows].sum()),
            "records_without_image": int((held.image_counts[rows] == 0).sum()),
            "records_without_text": sum(not texts[row] for row in rows),
            "records_with_prior": sum(bool(priors[row]) for row in rows),
            "leakage_unit_known_share": float(np.mean([known[row] for row in rows])),
        }
    return found


def tally(values: Any) -> dict[str, int]:
    """Value -> count, most frequent first; blank values are "not stated"."""
    found = collections.Counter(str(value) if value else "not stated" for value in values)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def spread(values: np.ndarray) -> Numbers:
    """Number, mean, quantiles, least and greatest value; {"n": 0} without values."""
    if not len(values):
        return {"n": 0}
    found = {"n": len(values), "mean": float(values.mean()), "min": float(values.min())}
    for quantile, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True):
        found[f"p{quantile}"] = float(value)
    return found | {"max": float(values.max())}


def images(held: Holdings) -> Numbers:
    """Projections, sizes as the owner distributes them, and numbers of images per record."""
    heights, widths = (np.asarray(held.flat(f"orig_{side}s")) for side in ("height", "width"))
    sizes = collections.Counter(zip(widths.tolist(), heights.tolist(), strict=True))
    spaced = sum(1 for spacing in held.flat("spacings") if spacing)
    return {
        "per_record": {
            str(count): int(number)
            for count, number in enumerate(np.bincount(held.image_counts))
            if number
        },
        "projections": tally(held.flat("projections")),
        "projection_sources": tally(held.flat("projection_sources")),
        "heights": spread(heights),
        "widths": spread(widths),
        "distinct_sizes": len(sizes),
        "most_common_sizes": {
            f"{width} x {height}": n for (width, height), n in sizes.most_common(5)
        },
        "with_pixel_spacing": spaced,
        "records_with_boxes": sum(number > 0 for number in held.column("num_boxes")),
        "boxes": sum(held.column("num_boxes")),
        "records_with_masks": sum(bool(names) for names in held.column("mask_labels")),
        "masks": tally(itertools.chain.from_iterable(held.column("mask_labels"))),
        "stored": held.manifest.get("image") or {},
    }


def pixels(held: Holdings) -> Numbers:
    """Mean and deviation of every channel of a corpus in colour, as stored, in parts of full range.

    Of at most 256 images, spread evenly over the train split, or over all where there is none; {}
    for a grey corpus. `config.towers.NAME.pixel_mean` and `pixel_std` take such numbers.

    Returns:
      images: how many were read. mean, deviation: of red, green and blue.

    Raises:
      InputError: a shard is damaged.
    """
    if held.manifest.get("channels", 1) == 1:
        return {}
    rows = held.splits.get("train", np.arange(len(held)))
    rows = rows[held.image_counts[rows] > 0]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLED, len(rows))).astype(int))
    moments = []
    for row in rows[chosen].tolist():
        image = held.image(row, 0)
        levels = image.reshape(-1, 3) / np.iinfo(image.dtype).max
        moments.append([levels.mean(axis=0), np.square(levels).mean(axis=0)])
    # Every image counts the same, whatever its size.
    mean, square = np.mean(moments, axis=0) if moments else np.full((2, 3), np.nan)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return {"images": len(moments), "mean": mean.tolist(), "deviation": deviation.tolist()}


def labels(held: Holdings) -> Numbers:
    """Split -> labelled records, and per label the numbers present, absent, uncertain and blank.

    A record is labelled if any of its labels is stated. Other records are left out.
    """
    names = held.manifest.get("label_names") or []
    rows_of = held.column("labels")
    found: Numbers = {}
    for split, rows in parts(held):
        labelled = [rows_of[row] for row in rows if any(v != -2 for v in rows_of[row] or ())]
        matrix = np.asarray(labelled, np.int8).reshape(len(labelled), len(names))
        found[split] = {
            "labelled": len(labelled),
            "records": len(rows),
            "labels": {
                name: {word: int((matrix[:, k] == value).sum()) for value, word in VALUES.items()}
                for k, name in enumerate(names if labelled else ())
            },
        }
    return found


def attributes(held: Holdings) -> Numbers:
    """Attribute -> number of records that have it, and its values.

    Up to 8 distinct values are counted. Of more values, numbers are summarised by quantiles.
    """
    stated: dict[str, list[str]] = collections.defaultdict(list)
    for cell in held.column("attributes"):
        for name, value in json.loads(cell).items():
            if value:
                stated[name].append(value)
    found: Numbers = {}
    for name, values in sorted(stated.items()):
        entry: Numbers = {"records": len(values), "distinct": len(set(values))}
        if entry["distinct"] <= _FEW:
            entry["values"] = tally(values)
        else:
            with contextlib.suppress(ValueError):
                numbers = np.asarray(values, float)
                if np.isfinite(numbers).all():
                    entry["numbers"] = spread(numbers)
        found[name] = entry
    return found


def sections(held: Holdings) -> Numbers:
    """Split -> number of records with each section, and with findings, impression or both."""
    findings, impression = (held.texts(name) for name in ("findings", "impression"))
    texts = {name: held.texts(name) for name in held.known}
    found: Numbers = {}
    for split, rows in parts(held):
        both = collections.Counter((bool(findings[k]), bool(impression[k])) for k in rows)
        found[split] = {
            "records": len(rows),
            "both": both[True, True],
            "findings_only": both[True, False],
            "impression_only": both[False, True],
            "neither": both[False, False],
            "sections": {
                name: sum(bool(column[k]) for k in rows) for name, column in texts.items()
            },
        }
    return found


def provenance(held: Holdings) -> Numbers:
    """Section -> number of its texts, how many came with the corpus and are synthetic, and authors.

    {} for a corpus to which no text was added, see `Record.provenance`.
    """
    if not held.has("provenance"):
        return {}
    stated = list(map(provenance_of, held.column("provenance")))
    found: Numbers = {}
    for section in held.known:
        written = [
            (one or {}).get(section)
            for one, text in zip(stated, held.texts(section), strict=True)
            if text
        ]
        added = [one for one in written if one is not None]
        found[section] = {
            "texts": len(written),
            "own": len(written) - len(added),
            "synthetic": sum(one.synthetic for one in added),
            "by": tally(map(str, added)),
        }
    return found


def crossing(held: Holdings) -> Numbers:
    """Pair of splits -> what both contain, and the records of the second split that contain it.

    A patient, study or leakage unit in two splits is an error of the division. An image or a report
    in two splits may be a duplicate with another patient id, which no division by patient prevents.
    """
    units = zip(held.column("leakage_unit"), held.column("aliases"), strict=True)
    ones: dict[str, list[list[str]]] = {
        "patients": [[key] for key in held.column("patient_id")],
        "studies": [[key] for key in held.column("study_id")],
        "leakage_units": [[key, *(aliases or ())] for key, aliases in units],
        "images": held.column("image_sha256"),
        "texts": [[text] if text else [] for text in held.canonical],
    }
    found: Numbers = {}
    for (first, before), (second, after) in itertools.combinations(held.splits.items(), 2):
        shared: Numbers = {}
        for name, of in ones.items():
            known = set(itertools.chain.from_iterable(of[row] for row in before))
            hits = [known.intersection(of[row]) for row in after]
            shared[name] = {
                "shared": len(set().union(*hits)),
                "records": sum(map(bool, hits)),
                "of": len(after),
            }
        found[f"{first}/{second}"] = shared
    return found


def origin(held: Holdings) -> Numbers:
    """Source, version, licence and access of the corpus, and the rejects of its preparation."""
    manifest: Mapping[str, Any] = held.manifest
    facts = held.facts()
    refused = manifest.get("rejects") or {}
    return {
        "title": facts.get("title", ""),
        "url": facts.get("url", ""),
        "source": tally(held.column("source")),
        "version": tally(held.column("source_version")),
        "licences": tally(held.column("license")),
        "access": tally(held.column("access")),
        "redistributable_records": sum(map(bool, held.column("redistributable"))),
        "languages": tally(held.column("language")),
        "split_official": tally(held.column("split_official")),
        "rejects": dict(refused),
        "rejected": sum(refused.values()),
        "missing_images": manifest.get("missing_images", 0),
        "warnings": list(manifest.get("warnings") or ()),
    }
