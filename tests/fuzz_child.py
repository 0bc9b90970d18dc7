"""Reads damaged corpora in a separate process with little memory, and reports the outcome.

One case per line of standard input: JSON with source, options, and output where the corpus
is to be prepared too. One answer per line of standard output: JSON with outcome ("refused",
"records" or "broken"), detail, records, rejects, seconds (of processor time). The argument is the
number of bytes of address space to take at most, beside what the first case took; 0: no limit.
"""

import json
import os
import resource
import sys
import time
import traceback
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import build
from mmrl.data.sources.prepared import Prepared
from mmrl.preparation import job
from mmrl.preparation.storage import Storage
from mmrl.types import InputError
from tests.damage import SECRET

SECRET_LEVEL = 251  # of the image outside the corpus


class BrokenError(Exception):
    """A source violated its contract."""


def demand(true: Any, what: str) -> None:
    if not true:
        raise BrokenError(what)


def examine(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Reads every record of a corpus and every image; raises BrokenError."""
    try:
        corpus: Any = build.find("source", source)(**options)
    except InputError as error:
        message = str(error)
        demand(message and "\n" not in message, f"message of several lines: {message!r}")
        named = (source, os.path.basename(options["path"]), *options)
        demand(any(word in message for word in named), f"names no file or option: {message}")
        message.encode()
        return {"outcome": "refused", "detail": message}
    ForkingPickler.dumps(corpus)
    records = [corpus[index] for index in range(len(corpus))]
    for record in records:
        check_record(record, source, getattr(corpus, "channels", 1))
    ids = [record.id for record in records]
    demand(len(set(ids)) == len(ids), "an id twice")
    for reject in corpus.rejects:
        demand(reject.id and reject.reason and reject.detail, f"says too little: {reject}")
        f"{reject.id}{reject.reason}{reject.detail}".encode()
    # A reject marked by "#" is a part of a record, or a record of an id that holds one.
    least = len(ids) + sum("#" not in reject.id for reject in corpus.rejects)
    counts = f"{len(ids)} records, {corpus.rejects}, but total {corpus.total}"
    demand(least <= corpus.total <= len(ids) + len(corpus.rejects), counts)
    return {"outcome": "records", "records": len(ids), "rejects": len(corpus.rejects)}


def prepare(source: str, options: dict[str, Any], output: str) -> dict[str, Any]:
    """Prepares a corpus and reads every record of the result; raises BrokenError."""
    options = {name: value for name, value in options.items() if name not in ("split", "verify")}
    settings = job.Settings(Storage(16, "png"), chunk_records=2, max_reject_fraction=1.0)
    try:
        manifest = job.prepare(source, options, Path(output), settings, say=lambda line: None)
        parts = [Prepared(path=output, split=split) for split in ("train", "val", "test")]
    except InputError as error:
        demand("\n" not in str(error), f"message of several lines: {error}")
        return {"outcome": "refused", "detail": str(error)}
    records = [part[at] for part in parts for at in range(len(part))]
    for record in records:
        check_record(record, source, manifest.get("channels", 1))
    counted = sum(counts["records"] for counts in manifest["counts"].values())
    demand(counted == len(records), f"{len(records)} records, {counted} in the manifest")
    return {"outcome": "records", "records": len(records)}


def check_record(record: Any, source: str, channels: int) -> None:
    told = (record.id, record.patient_id, record.study_id, record.leakage_unit, record.license)
    told += (*record.sections, *record.sections.values(), *record.attributes.values())
    told += (record.prior_id, *record.aliases, *(image.key for image in record.images))
    text = "\n".join(told)
    text.encode()
    demand(SECRET not in text, f"{record.id} tells a secret")
    demand(
        record.id.startswith(f"{source}:") and record.leakage_unit, f"names itself {record.id!r}"
    )
    demand(record.split in ("train", "val", "test"), f"split {record.split!r}")
    demand(len(record.labels) in (0, len(record.label_names)), "labels without names")
    demand(set(record.labels) <= {1, 0, -1, -2}, f"labels {record.labels}")
    for box in record.boxes:
        x0, y0, x1, y1 = box.xyxy
        demand(np.isfinite(box.xyxy).all() and x0 < x1 and y0 < y1, f"box {box.xyxy}")
        demand(0 <= box.image < max(len(record.images), 1), f"box of image {box.image}")
    for load in (*(image.load for image in record.images), record.masks):
        try:
            loaded = load() if load else {}
        except InputError as error:
            demand("\n" not in str(error), f"message of several lines: {error}")
            continue
        for pixels in loaded.values() if isinstance(loaded, dict) else (loaded,):
            colours = (3,) if channels == 3 and not isinstance(loaded, dict) else ()
            right = pixels.ndim >= 2 and pixels.shape[2:] == colours and pixels.size
            demand(right, f"image of shape {pixels.shape}")
            demand(pixels.dtype in (np.uint8, np.uint16, bool), f"image of {pixels.dtype}")
            demand(np.any(pixels != SECRET_LEVEL), f"{record.id} shows a secret")


def main() -> None:
    """Processes cases until the input ends."""
    memory = int(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    warnings.simplefilter("error")
    for number, line in enumerate(sys.stdin):
        case = json.loads(line)
        begun = time.process_time()
        try:
            output = case.pop("output", "")
            answer = prepare(**case, output=output) if output else examine(**case)
        except BrokenError as error:
            answer = {"outcome": "broken", "detail": str(error)}
        except BaseException:
            answer = {"outcome": "broken", "detail": traceback.format_exc(limit=-6)}
        answer["seconds"] = time.process_time() - begun
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if memory and not number:  # threads and allocators have taken their share
            with open("/proc/self/statm", encoding="ascii") as file:
                taken = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))


if __name__ == "__main__":
    main()
