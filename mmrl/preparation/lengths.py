"""How long the texts of a corpus are, in words and in tokens, and what was masked in them."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrl import config
from mmrl.data.text.reports import normalise
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.preparation.holdings import Holdings
from mmrl.preparation.survey import Numbers, spread
from mmrl.types import InputError

# What stands in place of what was removed: the marks of Open-i, of MIMIC-CXR, of MIMIC-III, and
# tags of common tools.
MASKED = {
    "XXXX": re.compile(r"X{3,}"),
    "___": re.compile(r"_{2,}"),
    "[** **]": re.compile(r"\[\*\*.*?\*\*\]", re.DOTALL),
    "tag": re.compile(
        r"[<\[](?:NAME|PATIENT|PERSON|DOCTOR|PHYSICIAN|DATE|TIME|AGE|ID|MRN|PHONE|LOCATION|"
        r"HOSPITAL|INSTITUTION|ADDRESS|EMAIL|REDACTED|REMOVED|DEIDENTIFIED|PHI)"
        r"(?:[-_: ]?\d*)[>\]]",
        re.IGNORECASE,
    ),
}


_SIGNS = ("XXX", "__", "[", "<")  # every mark holds one of them


def tokenizer_for(held: Holdings, path: str) -> tuple[Tokenizer | None, Numbers]:
    """The tokenizer of a file, or one trained as training would, and what it is.

    None, with the reason under "missing", where these texts need a larger vocabulary than the
    default of `mmrl.config`.

    Raises:
      InputError: the file is no tokenizer.
    """
    if path:
        loaded = Tokenizer.from_file(path)
        return loaded, {"file": path, "vocab_size": loaded.vocab_size, "sha256": loaded.sha256}
    data = config.base().data
    split = "train" if "train" in held.splits else "all"
    rows = held.splits.get("train", np.arange(len(held)))
    told: Numbers = {"trained_on": split, "model_type": data.tokenizer_model}
    try:
        made = Tokenizer.train(
            (held.composed[row] for row in rows),
            vocab_size=data.vocab_size,
            model_type=data.tokenizer_model,
        )
    except InputError as error:
        return None, told | {"missing": str(error)}
    return made, told | {"vocab_size": made.vocab_size, "requested_vocab_size": data.vocab_size}


def token_counts(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """i64[N]: tokens of each text with begin and end mark, as config.data.text_length counts."""
    counts = np.zeros(len(texts), np.int64)
    # A text of n bytes has at most so many pieces beside the blank before it; sorted, so that
    # few rows are padded to the longest.
    order = np.argsort([len(text) for text in texts], kind="stable")
    for low in range(0, len(order), 512):
        rows = order[low : low + 512]
        block = [texts[row] for row in rows]
        length = 8
        pending = np.arange(len(block))
        while len(pending):
            length *= 4
            made = tokenizer.encode_batch([block[k] for k in pending], length)
            done = ~made.truncated
            counts[rows[pending[done]]] = made.mask.sum(axis=1)[done]
            pending = pending[~done]
    return counts


def lengths(held: Holdings, tokenizer: Tokenizer | None, limits: Sequence[int]) -> Numbers:
    """Per section and of the composed text: words, tokens, and what each limit would cut.

    Only records that hold the text count. "values" of the composed text are kept for figures
    under "_words" and "_tokens", and are no part of the report.
    """
    found: Numbers = {}
    for name in ("text", *held.known):
        raw = held.composed if name == "text" else held.texts(name)
        told = [normalise(text) for text in raw if text]
        words = np.fromiter((len(text.split()) for text in told), np.int64, len(told))
        entry: Numbers = {"words": spread(words)}
        tokens = None
        if tokenizer is not None and told:
            tokens = token_counts(tokenizer, told)
            entry["tokens"] = spread(tokens)
            entry["truncated"] = {
                str(limit): {
                    "share": float((tokens > limit).mean()),
                    "tokens_lost": float(np.maximum(tokens - limit, 0).sum() / tokens.sum()),
                }
                for limit in limits
            }
        if name == "text":
            entry |= {"_words": words, "_tokens": tokens}
        found[name] = entry
    return found


def deidentification(held: Holdings) -> Numbers:
    """Section -> share of records and of words that are masks, and which marks were used."""
    found: Numbers = {}
    for name in ("text", *held.known):
        raw = held.composed if name == "text" else held.texts(name)
        told = [text for text in raw if text]
        per_form = dict.fromkeys(MASKED, 0)
        records = words = 0
        for text in told:
            words += len(text.split())
            if not any(sign in text for sign in _SIGNS):
                continue
            here = {form: len(pattern.findall(text)) for form, pattern in MASKED.items()}
            for form, number in here.items():
                per_form[form] += number
            records += any(here.values())
        total = sum(per_form.values())
        found[name] = {
            "texts": len(told),
            "records_share": records / len(told) if told else 0.0,
            "words_share": total / words if words else 0.0,
            "forms": {form: number for form, number in per_form.items() if number},
        }
    return found


def public(value: Any) -> Any:
    """Numbers without the arrays kept for figures."""
    if isinstance(value, dict):
        return {key: public(held) for key, held in value.items() if not key.startswith("_")}
    return value
