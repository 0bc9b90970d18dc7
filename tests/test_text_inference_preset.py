"""The preset of text inference: fine-tuning on pairs, and a frozen head in evaluation."""

import json
import pickle

import numpy as np
import pytest

from configs.text_inference import get_config
from mmrl import wiring
from mmrl.data.batches.pipeline import Examples
from mmrl.data.inputs import base as inputs
from mmrl.data.reading.sentence_pairs import LABELS
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.training import run
from mmrl.types import InputError
from tests import commands, toys
from tests.corpus_files import write_jsonl
from tests.test_text_inference import made


@pytest.fixture(scope="module")
def mednli(tmp_path_factory):
    """A folder in the layout of MedNLI, with invented sentences."""
    folder = tmp_path_factory.mktemp("mednli")
    for split, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        rows = [
            {
                "pairID": f"{split}{number}",
                "gold_label": one.entailment.label,
                "sentence1": one.entailment.premise,
                "sentence2": f"{one.entailment.label} of {one.entailment.premise}",
            }
            for number, one in enumerate(made(split))
        ]
        write_jsonl(folder / f"mli_{file}_v1.jsonl", rows)
    return folder


def config(mednli, variant="smoke,scratch"):
    chosen = get_config(variant)
    chosen.data.path = str(mednli)
    return chosen


def test_a_text_is_premise_mark_hypothesis(mednli):
    chosen = config(mednli)
    corpus = run.load_corpus(chosen, "val")
    tokenizer = Tokenizer.train(corpus.texts, vocab_size=330)
    data = Examples(chosen, corpus, {"text": tokenizer})
    arrays = data.arrays(["text"], range(3), "text")
    pair = corpus.record(1).entailment
    joined = f"{pair.premise} | {pair.hypothesis}"
    expected = tokenizer.encode(joined, arrays["text.tokens"].shape[1]).tokens
    np.testing.assert_array_equal(arrays["text.tokens"][1], expected)
    assert data.preprocessing["separator"] == " | "
    plain = config(mednli)
    plain.inputs.text.separator = " "
    others = Examples(plain, corpus, {"text": tokenizer})
    assert "separator" not in others.preprocessing and others.sha256 != data.sha256
    assert others.items_sha256 == data.items_sha256
    assert (others.arrays(["text"], [1], "text")["text.tokens"] != expected).any()


def test_the_separator_reads_in_workers_and_only_whole_reports():
    chosen = toys.config(inputs={"text": {"separator": " | "}})
    (made_input,) = inputs.make(
        chosen, wiring.Wiring.of({"text": "text"}, ["text.embedding"])
    ).values()
    place = inputs.Place(toys.corpus(), toys.tokenizer())
    assert pickle.loads(pickle.dumps(made_input.open(place)))
    chosen.data.text = "sentence"
    with pytest.raises(InputError, match=r"separator=' \| ' with text=sentence"):
        inputs.make_one(chosen, "text", "text")


def test_labels_are_the_three_classes(mednli):
    chosen = config(mednli)
    corpus = run.load_corpus(chosen, "train")
    assert corpus.label_names == LABELS == chosen.data.label_names
    assert (corpus.labels.sum(axis=1) == 1).all()


def test_what_a_pretrained_run_must_say(capsys, tmp_path, mednli):
    refused = commands.refusal(
        capsys,
        "mmrl.main",
        "--config=configs/text_inference.py",
        f"--config.data.path={mednli}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert "needs a value" in refused and "config.towers.text" in refused


@pytest.mark.exhaustive
@pytest.mark.optax
def test_a_text_tower_is_fine_tuned_and_judged_with_a_frozen_head(mednli, tmp_path):
    arguments = (
        "--config=configs/text_inference.py:smoke,scratch",
        f"--workdir={tmp_path}",
        f"--config.data.path={mednli}",
        "--config.total_steps=10",
        "--config.towers.text.vocab_size=330",
        f"--config.compile_cache={commands.COMPILATIONS.name}",
        "--nosummary",
    )
    assert commands.run_here("mmrl.main", *arguments) == 0
    stored = json.loads((tmp_path / "results" / "00000010.json").read_text())
    values = stored["results"]["classification"]["values"]
    assert values["accuracy"]["n"] == 120 and values["accuracy_constant"]["value"] > 0.3
    evaluate = (
        "mmrl.evaluate",
        f"--workdir={tmp_path}",
        "--config=configs/text_inference.py:frozen",
        f"--config.data.path={mednli}",
        "--config.evaluators.text_inference.reads.text=text.pooled",
        "--config.evaluators.text_inference.bootstrap=20",
        f"--out={tmp_path / 'frozen'}",
    )
    assert commands.run_here(*evaluate) == 0
    found = json.loads((tmp_path / "frozen" / "results.json").read_text())
    result = found["results"]["text_inference"]
    assert result["protocol"] == "text_inference@1" and result["n"] == 120
    assert result["details"]["fitted_on"]["name"] == "mednli/train"
    assert result["values"]["accuracy_bag_of_words"]["value"] == 1  # the labels are in the words
    assert (tmp_path / "frozen" / "draws.npz").is_file() and found["weights_sha256"]
