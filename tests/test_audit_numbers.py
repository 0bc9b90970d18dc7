"""The numbers of an audit, by hand on a tiny corpus and by sampling on real reports."""

import csv
import itertools

import numpy as np
import pytest

from mmrl.data.text import reports
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.preparation import deidentification, lengths, repeats, survey
from mmrl.preparation.holdings import Holdings
from tests.toy_corpora import audit_tiny, record, tiny, write


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Folder, its numbers, its page."""
    return audit_tiny(tmp_path_factory.mktemp("audit"))


def test_counts_by_hand(audited):
    _, found, _ = audited
    train, test, whole = (found["counts"][split] for split in ("train", "test", "all"))
    assert train == {
        "records": 3, "patients": 3, "studies": 2, "leakage_units": 3, "images": 2,
        "records_without_image": 1, "records_without_text": 0, "records_with_prior": 0,
        "leakage_unit_known_share": 1.0,
    }  # fmt: skip
    assert (test["records"], test["images"], test["records_without_text"]) == (2, 1, 1)
    assert (whole["records"], whole["patients"], whole["images"]) == (6, 5, 5)
    assert found["origin"]["rejects"] == {"unreadable_image": 2, "bad_row": 1}
    assert found["origin"]["licences"] == {"not stated": 5, "CC0-1.0": 1}
    assert found["origin"]["redistributable_records"] == 1


def test_sections_and_labels_by_hand(audited):
    _, found, _ = audited
    assert found["sections"]["train"] == {
        "records": 3, "both": 2, "findings_only": 0, "impression_only": 1, "neither": 0,
        "sections": {"findings": 2, "impression": 3},
    }  # fmt: skip
    # "None" is what a table writes for no text.
    assert found["sections"]["test"]["neither"] == 1
    # Record 3 states no label, record 6 has none.
    assert found["labels"]["all"] == {
        "labelled": 4,
        "records": 6,
        "labels": {
            "Mass": {"present": 2, "absent": 2, "uncertain": 0, "not_stated": 0},
            "Effusion": {"present": 1, "absent": 1, "uncertain": 1, "not_stated": 1},
        },
    }


def test_images_by_hand(audited):
    _, found, _ = audited
    seen = found["images"]
    assert seen["per_record"] == {"0": 2, "1": 3, "2": 1}
    assert seen["projections"] == {"PA": 4, "UNKNOWN": 1}
    assert (seen["widths"]["max"], seen["heights"]["min"]) == (160, 96)
    assert (seen["boxes"], seen["records_with_boxes"]) == (1, 1)
    assert seen["stored_bits"] == {"8 bit": 4}


def test_repeats_by_hand(audited):
    _, found, _ = audited
    seen = found["repeats"]["images"]
    assert (seen["images"], seen["flat"]) == (5, 0)
    assert seen["exact"] == {
        "items": 5, "repeated": 2, "share": 0.4, "sets": 1, "largest": 2, "of_several_patients": 1,
    }  # fmt: skip
    # The image of record 5 is that of record 4 at half the size.
    assert (seen["near"]["same_picture_pairs"], seen["near"]["images"]) == (1, 2)
    assert seen["near"]["examples"] == [["toy:4", "toy:5"]]
    texts = found["repeats"]["texts"]
    assert texts["exact"] == {"items": 5, "repeated": 2, "share": 0.4, "sets": 1, "largest": 2}
    assert texts["sections"]["impression"]["repeated"] == 3
    assert texts["top"] == [{"text": "no effusion. Normal.", "count": 2}]
    said = found["repeats"]["sentences"]
    # No effusion, normal xxxx chest; no effusion, normal; normal; a mass; no effusion, normal.
    assert (said["sentences"], said["distinct"]) == (8, 4)
    assert said["recurring_share"] == 6 / 8
    assert said["records_all_recurring_share"] == 3 / 5
    assert said["top"] == [
        {"text": "No effusion.", "count": 3},
        {"text": "Normal.", "count": 3},
    ]


def test_false_negatives_and_leakage_by_hand(audited):
    _, found, _ = audited
    shares = found["false_negatives"]["shares"]
    assert found["false_negatives"]["split"] == "train"
    # Of three texts none are equal, two are of one study: each pair is drawn once in three times.
    assert shares["text"] == {"2": 0.0, "3": 0.0}
    assert shares["study"] == {"2": pytest.approx(1 / 3), "3": pytest.approx(2 / 3)}
    assert shares["section.impression"] == shares["study"]
    assert shares["section.findings"] == {"2": 1.0, "3": 1.0}
    crossing = found["crossing"]["train/test"]
    assert crossing["patients"] == {"shared": 1, "records": 1, "of": 2}
    assert crossing["studies"] == {"shared": 0, "records": 0, "of": 2}
    assert crossing["texts"] == {"shared": 1, "records": 1, "of": 2}
    assert crossing["images"]["records"] == 0
    told = found["cautions"]
    assert "1 (50.0 %) records of test share patients with train." in told
    assert "1 pictures belong to several patients each, with equal pixels." in told
    assert any(line.startswith("2 (40.0 %) images look like another one") for line in told)
    assert not any("studies with" in line for line in told)


def test_lengths_and_masks_by_hand(audited):
    folder, found, _ = audited
    words = found["lengths"]["text"]["words"]
    # 5, 3, 1, 5 and 3 words; the record without text does not count.
    assert (words["n"], words["mean"], words["min"], words["max"], words["p50"]) == (
        5,
        3.4,
        1,
        5,
        3,
    )
    assert found["deidentification"]["text"] == {
        "texts": 5, "records_share": 0.2, "words_share": 1 / 17, "forms": {"XXXX": 1},
    }  # fmt: skip
    # The vocabulary of 2,000 is more than these texts support; the audit says what came out.
    assert found["tokenizer"]["trained_on"] == "train"
    assert found["tokenizer"]["vocab_size"] < found["tokenizer"]["requested_vocab_size"] == 2000
    held = Holdings(folder)
    made, _ = lengths.choose_tokenizer(held, "")
    texts = [text for text in held.composed if text]
    sizes = [int(made.encode(text, 500).mask.sum()) for text in texts]
    assert found["lengths"]["text"]["tokens"]["max"] == max(sizes)
    assert found["lengths"]["text"]["truncated"]["8"]["share"] == np.mean(np.array(sizes) > 8)
    assert found["lengths"]["text"]["truncated"]["300"]["share"] == 0


def test_token_counts_of_long_texts_and_a_tokenizer_file(tmp_path):
    made = Tokenizer.train(["a b c d e f g"], vocab_size=300)
    texts = ["a", "", "a b c d e f g " * 90, "b " * 40, *["c d"] * 600]
    expected = [int(made.encode(text, 2000).mask.sum()) for text in texts]
    assert lengths.token_counts(made, texts).tolist() == expected
    assert max(expected) > 128
    made.save(tmp_path / "own.model")
    held = Holdings(tiny(tmp_path / "toy"))
    loaded, told = lengths.choose_tokenizer(held, str(tmp_path / "own.model"))
    assert loaded is not None
    assert told["sha256"] == made.sha256


def test_marks_of_all_corpora_are_found(tmp_path):
    texts = ["Dr. ___ on [**2010-1-1**] and [** Hospital 3 **].", "x-XXXX by <NAME>", "axx __init"]
    folder = write(tmp_path / "toy", [(record(str(k), caption=t), []) for k, t in enumerate(texts)])
    found = deidentification.count_marks(Holdings(folder))["caption"]
    assert found["forms"] == {"XXXX": 1, "___": 2, "[** **]": 2, "tag": 1}
    assert found["records_share"] == 1.0


@pytest.mark.parametrize("groups", ["aabcccd", "aaaaaaa", "abcdefg", "aaaabbb"])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 9])
def test_share_with_partner_is_the_mean_over_all_batches(groups, batch):
    drawn = list(itertools.combinations(range(len(groups)), min(batch, len(groups))))
    shares = [
        np.mean([sum(groups[i] == groups[j] for j in rows) > 1 for i in rows]) for rows in drawn
    ]
    assert repeats.share_with_partner(groups, batch) == pytest.approx(np.mean(shares))


def test_unknown_leakage_units_are_told(tmp_path):
    held = [
        (record("1", findings="A b c.", leakage_unit_known=False), []),
        (record("2", findings="A b d."), []),
    ]
    found = survey.counts(Holdings(write(tmp_path / "toy", held)))
    assert found["all"]["leakage_unit_known_share"] == 0.5


@pytest.mark.real_data
def test_openi_repeats_itself_as_counted_and_simulated(real_data):
    with open(real_data / "openi" / "indiana_reports.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    impressions = [reports.canonical(row["impression"]) for row in rows if row["impression"]]
    joined = [reports.canonical(f"{row['findings']} {row['impression']}") for row in rows]
    joined = [text for text in joined if text]
    counted = [len(impressions), len(joined)]
    assert counted == [3820, 3826]
    seen = repeats.repeated(joined)
    assert (seen["repeated"], seen["sets"], seen["largest"]) == (945, 155, 51)
    assert repeats.share_with_partner(joined, 32) == pytest.approx(0.03, abs=0.005)
    assert repeats.share_with_partner(joined, 256) == pytest.approx(0.12, abs=0.005)
    draw = np.random.default_rng(0)
    _, groups = np.unique(impressions, return_inverse=True)
    for batch, expected in ((32, 0.275), (64, 0.361), (256, 0.485)):
        exact = repeats.share_with_partner(impressions, batch)
        assert exact == pytest.approx(expected, abs=0.0006)
        shares = []
        for _ in range(400):
            drawn = groups[draw.choice(len(groups), batch, replace=False)]
            shares.append(np.mean(np.bincount(drawn)[drawn] > 1))
        assert abs(exact - np.mean(shares)) < 4 * np.std(shares) / 20
