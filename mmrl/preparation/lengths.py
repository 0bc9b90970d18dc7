"""The lengths of the texts of a prepared corpus, in words and in tokens."""

from collections.abc import Sequence

import numpy as np

from mmrl import config
from mmrl.data.text.reports import normalise
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.preparation.holdings import Holdings
from mmrl.preparation.survey import Numbers, spread
from mmrl.types import InputError


def choose_tokenizer(held: Holdings, path: str) -> tuple[Tokenizer | None, Numbers]:
    """Loads a tokenizer, or trains one on the train split with the defaults of training.

    Args:
      path: a tokenizer.model or tokenizer.json, see `Tokenizer.from_file`; "" trains a tokenizer on
        the train split, or on all records where there is no train split.

    Returns:
      The tokenizer and a description of it. The tokenizer is None where the texts do not support
      the default size of the vocabulary; the description then holds the reason as "missing".

    Raises:
      InputError: the file is no tokenizer.
    """
    if path:
        loaded = Tokenizer.from_file(path)
        return loaded, {"file": path, "vocab_size": loaded.vocab_size, "sha256": loaded.sha256}
    size, model_type = config.base().towers.text.vocab_size, "bpe"
    split = "train" if "train" in held.splits else "all"
    rows = held.splits.get("train", np.arange(len(held)))
    described: Numbers = {"trained_on": split, "model_type": model_type}
    try:
        trained = Tokenizer.train(
            (held.composed[row] for row in rows),
            vocab_size=size,
            model_type=model_type,
        )
    except InputError as error:
        return None, described | {"missing": str(error)}
    described |= {"vocab_size": trained.vocab_size, "requested_vocab_size": size}
    return trained, described


def token_counts(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """i64[N]: tokens of each text, begin and end marks included."""
    counts = np.zeros(len(texts), np.int64)
    # Texts of similar length share a block, so that few rows are padded to the longest. A text
    # that does not fit is encoded again with four times the room.
    order = np.argsort([len(text) for text in texts], kind="stable")
    for low in range(0, len(order), 512):
        rows = order[low : low + 512]
        block = [texts[row] for row in rows]
        length = 8
        pending = np.arange(len(block))
        while len(pending):
            length *= 4
            encoded = tokenizer.encode_batch([block[k] for k in pending], length)
            done = ~encoded.truncated
            counts[rows[pending[done]]] = encoded.mask.sum(axis=1)[done]
            pending = pending[~done]
    return counts


def measure_lengths(
    held: Holdings, tokenizer: Tokenizer | None, limits: Sequence[int]
) -> dict[str, Numbers]:
    """Words and tokens of each section and of the composed text, and what each limit cuts.

    Records that lack the text are left out. The entry of the composed text, "text", also holds the
    single values as "_words" and "_tokens", i64[N] each, for the figures.

    Args:
      tokenizer: None leaves out all that is counted in tokens.
      limits: in tokens; for each the share of texts that are longer, and of tokens beyond it.
    """
    found: dict[str, Numbers] = {}
    for name in ("text", *held.known):
        raw = held.composed if name == "text" else held.texts(name)
        texts = [normalise(text) for text in raw if text]
        words = np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))
        entry: Numbers = {"words": spread(words)}
        tokens = None
        if tokenizer is not None and texts:
            tokens = token_counts(tokenizer, texts)
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
