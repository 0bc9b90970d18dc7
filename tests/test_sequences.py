"""What is given where a list is wanted: lone texts, other types, unpaired surrogates."""

import functools
from pathlib import Path

import numpy as np
import pytest

from mmrl import config as configs
from mmrl import presets, sequences
from mmrl.data import perturb
from mmrl.data.batches.pipeline import Prompts
from mmrl.data.corpus import group_ids, read_corpus
from mmrl.data.overlap import duplicates, signatures
from mmrl.data.perturb.mix import Mix
from mmrl.data.sources.phantom import Phantom
from mmrl.data.text import tokenizer_files
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.evaluators.ngrams import LanguageModel
from mmrl.evaluators.precision_at_k import PrecisionAtK
from mmrl.evaluators.probe import Probe
from mmrl.evaluators.prompt_sets import worded
from mmrl.evaluators.retrieval import identical_share
from mmrl.evaluators.structure import Structure
from mmrl.evaluators.zero_shot_classes import ZeroShotClasses
from mmrl.preparation import audit
from mmrl.reporting import comparison
from mmrl.types import InputError
from tests.fakes import FakeData

TEXTS = ["No effusion.", "Small left effusion.", "Äußere Kontur unauffällig."]


# What is given in place of a list, and words of the message.
LONE = {
    "text": ("No effusion.", r"given a single str 'No effusion\.'; expected a list of str"),
    "bytes": (b"No effusion.", "given a single bytes"),
    "path": (Path("a.png"), r"given a single \w*Path 'a.png'"),
    "none": (None, "given a single None"),
    "number": (3, "given a single int"),
    "mapping": ({"a": 1}, "given a single dict"),
    "set": ({"a", "b"}, "given a single set"),
    "array without axes": (np.array("abc"), "given a single array"),
    "table": (np.array([["a", "b"]]), r"given a single array <U1\[1, 2\]"),
}
ITEMS = {
    "item none": (["a", None], r"\[1\] is None; expected str"),
    "item bytes": (["a", b"b"], r"\[1\] is bytes b?'b'; expected str"),
    "item number": (["a", "b", 3.5], r"\[2\] is float"),
    "list": ([["a"]], r"\[0\] is list"),
    "missing value of a column": (np.array(["a", np.nan], object), r"\[1\] is float"),
    "array of numbers": (np.arange(2), r"\[0\] is int64"),
    "high surrogate": (["a", "lung \ud83d."], r"\[1\] has an unpaired surrogate, '\\ud83d', at po"),
    "low surrogate": (["\udcff"], r"\[0\] has an unpaired surrogate, '\\udcff', at position 0"),
}


@pytest.mark.parametrize("kind", [*LONE, *ITEMS])
def test_no_list_of_texts(kind):
    given, message = (LONE | ITEMS)[kind]
    with pytest.raises(InputError, match=f"^texts.*{message}"):
        sequences.of(given, "texts")


@pytest.mark.parametrize(
    "given",
    [
        ["a", "ä"],
        ("a", "ä"),
        (one for one in "aä"),
        np.array(["a", "ä"]),
        {0: "a", 1: "ä"}.values(),
    ],
    ids=["list", "tuple", "generator", "array", "view"],
)
def test_lists_of_texts(given):
    assert sequences.of(given, "texts") == ["a", "ä"]


def test_a_generator_is_read_only_as_far_as_it_is_asked():
    read = sequences.each(iter(["a", None]), "texts")
    assert next(read) == "a"
    with pytest.raises(InputError, match=r"texts\[1\] is None"):
        next(read)


def test_images():
    kinds = (*sequences.PATHS, np.ndarray)
    image = np.zeros((4, 5), np.uint8)
    assert len(sequences.of(["a.png", Path("b.png"), image], "images", kinds)) == 3
    assert len(sequences.of(np.zeros((2, 4, 5), np.uint8), "images", kinds)) == 2
    for lone in ("a.png", Path("a.png"), image, image[..., None], image[0]):
        with pytest.raises(InputError, match=r"images: given a single|images\[0\] is uint8"):
            sequences.of(lone, "images", kinds)
    with pytest.raises(InputError, match=r"images\[1\] is bytes .*; expected str or PathLike or a"):
        sequences.of(["a.png", b"b.png"], "images", kinds)


class _Stated:
    """As much of `Examples` as `Prompts` reads."""

    sha256 = ""


class _Towers:
    """As much of `Predict` as evaluators read before they check their options."""

    provides = ("image.embedding", "image.pooled", "text.embedding")


@functools.cache
def tokenizer():
    return Tokenizer.train(TEXTS * 4, vocab_size=320)


def evaluator(target, option):
    return lambda given: target(_Towers(), FakeData(TEXTS), **{option: given})


CALLS = {
    "Tokenizer.train": lambda given: Tokenizer.train(given, vocab_size=300),
    "Tokenizer.encode_batch": lambda given: tokenizer().encode_batch(given, 8),
    "word_pieces": tokenizer_files.word_pieces,
    "Prompts": lambda given: Prompts(_Stated(), given),
    "near_texts": duplicates.near_texts,
    "near_texts, others": lambda given: duplicates.near_texts(TEXTS, given),
    "signatures": signatures.signatures,
    "group_ids": lambda given: group_ids(["a", "b"], given),
    "group_ids, studies": lambda given: group_ids(given, TEXTS),
    "read_corpus": lambda given: read_corpus("a", Phantom(split="val"), sections=given),
    "identical_share": identical_share,
    "worded": lambda given: worded(given, "Edema"),
    "LanguageModel": LanguageModel,
    "LanguageModel.score": lambda given: LanguageModel(TEXTS).score(given),
    "check_kinds": perturb.check_kinds,
    "Mix": Mix.from_config,
    "Structure": evaluator(Structure, "protocols"),
    "ZeroShotClasses": evaluator(ZeroShotClasses, "variants"),
    "PrecisionAtK": evaluator(PrecisionAtK, "classes"),
    "Probe": evaluator(Probe, "methods"),
    "compare": lambda given: comparison.compare({"a": None}, measures=given),
    "compare, may_differ": lambda given: comparison.compare({"a": None}, may_differ=given),
    "audit": lambda given: audit.audit(given),
    "audit, against": lambda given: audit.audit(["corpus"], against=given),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("given", ["effusion", b"effusion", ["effusion", None], [b"effusion"]])
def test_public_calls_refuse_what_is_no_list_of_texts(name, given):
    with pytest.raises(InputError, match=r"given a single|is None|is bytes"):
        CALLS[name](given)


@pytest.mark.parametrize("name", CALLS)
def test_public_calls_refuse_unpaired_surrogates(name):
    with pytest.raises(InputError, match="unpaired surrogate"):
        CALLS[name](["\ud800"])


def test_a_report_is_one_text():
    with pytest.raises(InputError, match=r"texts\[0\] is None"):
        tokenizer().encode(None, 8)


# --- lists of texts in a config -------------------------------------------------------------------

LISTS = ["data.sections", "data.label_names", "evaluators.structure.protocols"]


@pytest.mark.parametrize("key", LISTS)
def test_one_text_on_the_command_line_is_a_list_of_one(key):
    config = presets.load("configs/pretrain.py")
    presets.change(config, [(key, "findings")])
    value = functools.reduce(lambda node, part: node[part], key.split("."), config)
    assert tuple(value) == ("findings",)


@pytest.mark.parametrize("key", LISTS)
def test_a_preset_that_gives_one_text_for_a_list_is_refused(key):
    config = presets.load("configs/pretrain.py")
    *path, last = key.split(".")
    node = functools.reduce(lambda node, part: node[part], path, config)
    with config.ignore_type(), config.unlocked():
        node[last] = "findings"
    with pytest.raises(InputError, match=rf"config\.{key}='?findings'?; expected a list of texts"):
        configs.validate(config)
