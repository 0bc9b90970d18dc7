"""The phantom corpus: deterministic, split by patient, its truth is that of the picture."""

import collections
import dataclasses
import pickle
import re

import numpy as np
import pytest

from mmrl.data.phantom import study as phantom
from mmrl.data.phantom.findings import DEVICES
from mmrl.data.sources.phantom import Phantom
from mmrl.data.text import reports
from mmrl.types import InputError, Source

STUDIES = [phantom.study(0, index) for index in range(300)]
BRIGHTER = {"pleural effusion", "consolidation", "nodule", "atelectasis", "edema", *DEVICES}


def test_equal_seed_and_index_give_the_same_study_and_picture():
    again = phantom.study(0, 7)
    assert again == STUDIES[7]
    np.testing.assert_array_equal(phantom.render(again, 64), phantom.render(STUDIES[7], 64))
    assert phantom.study(1, 7) != STUDIES[7]


def test_pictures_are_not_all_alike():
    pictures = np.stack([phantom.render(study, 64) for study in STUDIES[:40]]).astype(float)
    assert pictures.std(axis=0).mean() > 8
    assert pictures.std(axis=(1, 2)).min() > 30


@pytest.mark.parametrize("size", [64, 224])
def test_masks_lie_in_the_picture_and_boxes_bound_them(size):
    for study in STUDIES[:40]:
        boxes, places = phantom.boxes(study, size), phantom.places(study, size)
        assert len(boxes) == len(places)
        for box, (position, inside) in zip(boxes, places, strict=True):
            assert inside.shape == (size, size) and inside.any()
            x0, y0, x1, y1 = map(int, box.xyxy)
            assert inside[y0:y1, x0:x1].sum() == inside.sum()
            for edge in (inside[y0], inside[y1 - 1], inside[:, x0], inside[:, x1 - 1]):
                assert edge.any()
            assert box.label == study.findings[position].name


def test_every_finding_has_a_place_unless_fluid_covers_it():
    for study in STUDIES:
        placed = {position for position, _ in phantom.places(study, 64)}
        for position, finding in enumerate(study.findings):
            if position not in placed:
                assert finding.name in ("pneumothorax", "edema"), finding


def test_boxes_scale_with_the_picture():
    for study in STUDIES[:30]:
        small, large = phantom.boxes(study, 64), phantom.boxes(study, 256)
        if len(small) == len(large):  # the tip of free air may be thinner than a small pixel
            for a, b in zip(small, large, strict=True):
                np.testing.assert_allclose(np.array(a.xyxy) * 4, b.xyxy, atol=12)


def test_findings_change_the_picture_where_their_mask_says():
    """Against the same patient and exposure without findings."""
    changes = collections.defaultdict(list)
    for study in STUDIES[:150]:
        if any(f.name == "cardiomegaly" for f in study.findings):
            continue  # a larger heart moves what lies beside it
        healthy = dataclasses.replace(study, lesions=())
        change = phantom.render(study, 64).astype(float) - phantom.render(healthy, 64)
        everywhere = np.zeros((64, 64), bool)
        for position, inside in phantom.places(study, 64):
            changes[study.findings[position].name].append(change[inside].mean())
            everywhere |= inside
        if study.findings:
            assert np.abs(change[everywhere]).mean() > 4 * np.abs(change[~everywhere]).mean()
        else:
            assert not change.any()
    assert set(changes) == set(phantom.LABELS) - {"cardiomegaly"}
    for name in BRIGHTER:
        assert np.mean(changes[name]) > 10, name
    assert np.mean(changes["pneumothorax"]) < -15


def test_the_heart_grows_with_the_stated_severity():
    area = collections.defaultdict(list)
    for study in STUDIES:
        severity = next((f.severity for f in study.findings if f.name == "cardiomegaly"), "")
        if severity:
            area[severity].append(phantom.masks(study, 64)["cardiomegaly"].sum())
    assert np.mean(area["mild"]) < np.mean(area["moderate"]) < np.mean(area["severe"])


def test_left_is_at_the_right_of_the_picture():
    for study in STUDIES:
        for position, inside in phantom.places(study, 64):
            finding = study.findings[position]
            if finding.side in ("left", "right") and finding.name not in DEVICES:
                centre = np.flatnonzero(inside.any(axis=0)).mean()
                assert (centre > 32) == (finding.side == "left"), finding


def test_zones_are_ordered_from_top_to_bottom():
    height = collections.defaultdict(list)
    for study in STUDIES:
        for position, inside in phantom.places(study, 64):
            finding = study.findings[position]
            if finding.name in ("consolidation", "nodule", "atelectasis"):
                height[finding.zone].append(np.flatnonzero(inside.any(axis=1)).mean())
    assert np.mean(height["upper"]) + 8 < np.mean(height["mid"]) < np.mean(height["lower"]) - 5


def test_labels_follow_the_findings_and_about_a_quarter_are_normal():
    for study in STUDIES:
        names = {finding.name for finding in study.findings}
        assert dict(zip(phantom.LABELS, study.labels, strict=True)) == {
            name: int(name in names) for name in phantom.LABELS
        }
        assert len(study.lesions) <= 4
    normal = np.mean([not study.lesions for study in STUDIES])
    assert 0.15 < normal < 0.3


def stated_in(text):
    """The words of a sentence."""
    return set(re.findall(r"[a-z]+", text.casefold()))


WORDS_OF = {
    "cardiomegaly": {"cardiomegaly", "heart", "cardiac"},
    "edema": {"edema"},
    "pleural effusion": {"effusion", "effusions"},
    "pneumothorax": {"pneumothorax"},
    "consolidation": {"consolidation"},
    "nodule": {"nodule"},
    "atelectasis": {"atelectasis"},
    "endotracheal tube": {"endotracheal"},
    "central venous catheter": {"catheter"},
    "pacemaker": {"pacemaker"},
}


def test_every_finding_is_stated_once_with_its_side_and_its_box_is_linked():
    for study in STUDIES:
        for position, finding in enumerate(study.findings):
            (sentence,) = [
                s for s in study.sentences if s.section == "findings" and position in s.states
            ]
            words = stated_in(sentence.text)
            assert words & WORDS_OF[finding.name], (sentence.text, finding)
            if finding.side in ("left", "right"):
                assert words & {finding.side, "bilateral", "both"}, (sentence.text, finding)
        for box in phantom.boxes(study, 64):
            assert set(stated_in(study.sentences[box.sentence].text)) & WORDS_OF[box.label]


def test_no_sentence_contradicts_the_picture():
    for study in STUDIES:
        present = {(f.name, f.side) for f in study.findings}
        names = {name for name, _ in present}
        for sentence in study.sentences:
            for name, side in sentence.denies:
                if side:
                    assert (name, side) not in present and (name, "bilateral") not in present
                else:
                    assert name not in names, sentence.text
            if re.match(r"(No|There is no) ", sentence.text) and not sentence.states:
                assert sentence.denies, sentence.text


def test_reports_have_their_sections_and_lengths():
    lengths, whole = [], collections.Counter()
    for study in STUDIES:
        findings = [s for s in study.sentences if s.section == "findings"]
        assert 2 <= len(findings) <= 6
        text = study.section("findings")
        assert len(reports.split_sentences(text)) == len(findings), text
        lengths.append(len(f"{text} {study.section('impression')}".split()))
        whole[text + study.section("impression")] += 1
        assert "  " not in text and "{" not in text and " ." not in text
    assert 25 <= np.median(lengths) <= 45 and max(lengths) <= 75
    assert sum(n for n in whole.values() if n > 1) <= 0.02 * len(STUDIES)


def test_normal_means_that_nothing_at_all_was_mentioned():
    for study in STUDIES:
        if "Normal chest radiograph." in study.section("impression"):
            assert not study.patient.scoliosis and not any(study.patient.elevation)
            assert all(s.denies for s in study.sentences)


def test_some_patients_return_and_keep_their_anatomy():
    assert STUDIES[0].patient == STUDIES[1].patient != STUDIES[2].patient
    assert STUDIES[0].technique != STUDIES[1].technique


def test_the_source_follows_the_contract_and_splits_by_patient():
    splits = {name: Phantom(split=name, length=900) for name in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == 900
    patients = []
    for source in splits.values():
        assert isinstance(source, Source) and source.total == len(source)
        assert len(pickle.dumps(source)) < 20_000
        patients.append({source[i].patient_id for i in range(len(source))})
    assert not patients[0] & patients[1] and not patients[0] & patients[2]
    record = splits["val"][3]
    copy = pickle.loads(pickle.dumps(record))
    np.testing.assert_array_equal(copy.images[0].load(), record.images[0].load())
    assert record.images[0].load().shape == (64, 64)
    assert list(copy.boxes) == list(record.boxes)
    assert set(record.masks()) == {box.label for box in record.boxes}
    for box in record.boxes:
        assert record.sentences[box.sentence][0] == "findings"


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="unknown split 'dev'; choices: train, val, test"):
        Phantom(split="dev")
    with pytest.raises(InputError, match="phantom length 0"):
        Phantom(split="train", length=0)
