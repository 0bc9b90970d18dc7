"""RadNLI and MedNLI with invented sentences."""

import gzip
import pickle

import pytest

from mmrl.data.sources.mednli import Mednli
from mmrl.data.sources.radnli import Radnli
from mmrl.types import Entailment, InputError
from tests.corpus_files import every, write_jsonl


def pair(native, label, premise, hypothesis, key="pair_id"):
    return {key: native, "gold_label": label, "sentence1": premise, "sentence2": hypothesis}


DEV = [
    pair("1a", "entailment", "No effusion.", "Pleura clear."),
    pair("1b", "neutral", "Pleura  clear", "no effusion."),  # swapped, printed otherwise
    pair("2a", "contradiction", "Large heart.", "Normal heart."),
]


@pytest.fixture
def radnli(tmp_path):
    write_jsonl(tmp_path / "radnli_dev_v1.jsonl", DEV)
    write_jsonl(tmp_path / "radnli_test_v1.jsonl", [pair("1a", "neutral", "Old film.", "New.")])
    return tmp_path


def test_pairs_are_sections_and_entailment(radnli):
    corpus = pickle.loads(pickle.dumps(Radnli(split="all", path=str(radnli))))
    records = every(corpus)
    assert [record.id for record in records] == [
        "radnli:val/1a",
        "radnli:val/1b",
        "radnli:val/2a",
        "radnli:test/1a",  # ids start anew in each file
    ]
    assert records[0].entailment == Entailment("No effusion.", "Pleura clear.", "entailment")
    assert records[0].sections == {"premise": "No effusion.", "hypothesis": "Pleura clear."}
    assert [record.entailment.label for record in records[1:]] == [
        "neutral",
        "contradiction",
        "neutral",
    ]
    assert [record.labels for record in records[:3]] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert records[0].label_names == ("entailment", "neutral", "contradiction")
    assert [record.split for record in records] == ["val", "val", "val", "test"]
    assert records[0].images == () and Radnli.facts.within == ("mimic_cxr",)
    assert any("3 records/val found, 480 in the published" in line for line in corpus.warnings)


def test_swapped_pairs_share_a_group_and_no_others(radnli):
    groups = [record.leakage_unit for record in every(Radnli(split="all", path=str(radnli)))]
    assert groups[0] == groups[1] and len(set(groups)) == 3
    half = {"train": 0.5, "test": 0.5}
    split_of = {
        record.id: record.split
        for part in ("train", "test")
        for record in every(
            Radnli(
                split="all", path=str(radnli), official_split=False, fractions=half, split_salt=part
            )
        )
    }
    assert split_of["radnli:val/1a"] == split_of["radnli:val/1b"]


def test_a_group_in_two_official_splits_is_told(radnli):
    write_jsonl(radnli / "radnli_test_v1.jsonl", DEV[1:2])
    corpus = Radnli(split="all", path=str(radnli))
    assert any(
        "1 leakage units" in line and "more than one split" in line for line in corpus.warnings
    )


def test_what_is_no_pair_is_listed(radnli):
    bad = [
        *DEV,
        pair("3a", "-", "One.", "Two."),
        pair("3b", "neutral", "One.", " "),
        pair("3c", "neutral", ["One."], "Two."),
        pair("1a", "neutral", "Again.", "Again."),
        {"gold_label": "neutral", "sentence1": "No.", "sentence2": "Id."},
    ]
    write_jsonl(radnli / "radnli_dev_v1.jsonl", bad)
    with (radnli / "radnli_dev_v1.jsonl").open("a") as file:
        file.write("{broken\n")
    corpus = Radnli(split="val", path=str(radnli))
    assert [(reject.id, reject.reason) for reject in corpus.rejects] == [
        ("radnli:val/3a", "bad_label"),
        ("radnli:val/3b", "empty_text"),
        ("radnli:radnli_dev_v1.jsonl row 6", "bad_row"),
        ("radnli:val/1a", "duplicate_id"),
        ("radnli:radnli_dev_v1.jsonl row 9", "bad_row"),
    ]
    assert [record.id for record in every(corpus)][-1] == "radnli:val/row 8"


def test_files_that_are_not_there(radnli):
    with pytest.raises(InputError, match="nothing found in split train"):
        Radnli(split="train", path=str(radnli))
    (radnli / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of radnli_dev_v1\.jsonl"):
        Radnli(split="all", path=str(radnli / "empty"))


def test_mednli_groups_the_hypotheses_of_a_premise(tmp_path):
    train = [
        pair("t1", "entailment", "He has CHF.", "He is ill.", "pairID"),
        pair("t2", "contradiction", "He has CHF.", "He is well.", "pairID"),
        pair("t3", "neutral", "She has a cough.", "He is ill.", "pairID"),
        pair("t4", "neutral", "He is well.", "He has CHF!", "pairID"),
        pair("t5", "neutral", "He is well.", "She sleeps.", "pairID"),
    ]
    for one in train:
        one |= {"sentence1_parse": "(ROOT x)", "sentence1_binary_parse": "( x )"}
    write_jsonl(tmp_path / "mli_train_v1.jsonl", train)
    test = "".join((tmp_path / "mli_train_v1.jsonl").read_text().splitlines(True)[2:3])
    with gzip.open(tmp_path / "mli_test_v1.jsonl.gz", "wt") as file:
        file.write(test.replace("t3", "t9"))
    corpus = Mednli(split="all", path=str(tmp_path))
    records = {record.id: record for record in every(corpus)}
    assert next(iter(records)) == "mednli:train/t1" and list(records)[-1] == "mednli:test/t9"
    group = {native.split("/")[1]: record.leakage_unit for native, record in records.items()}
    assert group["t1"] == group["t2"] == group["t4"] == group["t5"]
    assert group["t3"] == group["t9"] != group["t1"]
    assert any("1 leakage units" in line for line in corpus.warnings)
    assert records["mednli:train/t1"].sections["hypothesis"] == "He is ill."
    assert Mednli.facts.within == ("mimic_iii",)
