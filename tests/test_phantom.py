"""The phantom corpus: deterministic, split by patient, its truth is that of the picture."""

import collections
import dataclasses
import hashlib
import json
import pickle
import re

import numpy as np
import pytest

from mmrl.data.corpus import read_corpus
from mmrl.data.phantom import lateral, vector
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


def opposite(study):
    """The study with right and left exchanged."""
    other = {"right": "left", "left": "right"}
    lesions = [
        dataclasses.replace(
            lesion,
            finding=dataclasses.replace(
                lesion.finding, side=other.get(lesion.finding.side, lesion.finding.side)
            ),
        )
        for lesion in study.lesions
    ]
    patient = dataclasses.replace(
        study.patient,
        elevation=study.patient.elevation[::-1],
        scoliosis=-study.patient.scoliosis,
    )
    order = sorted(lesions, key=lambda lesion: (lesion.finding.name, lesion.finding.side))
    return dataclasses.replace(study, patient=patient, lesions=tuple(order))


def test_the_lateral_is_deterministic_and_shows_no_side():
    for study in STUDIES[:80]:
        picture = lateral.render(study, 64)
        assert picture.shape == (64, 64) and picture.dtype == np.uint8
        again = lateral.load_image(study.seed, study.index, 64)
        np.testing.assert_array_equal(picture, again)
        np.testing.assert_array_equal(picture, lateral.render(opposite(study), 64))
    sided = next(s for s in STUDIES if {f.side for f in s.findings} == {"left"})
    assert (phantom.render(sided, 64) != phantom.render(opposite(sided), 64)).any()


def seen(study, size=64):
    """How findings change the lateral: (mean of the rows that change most, greatest change)."""
    healthy = dataclasses.replace(study, lesions=())
    change = lateral.render(study, size).astype(float) - lateral.render(healthy, size)
    rows = np.abs(change).sum(axis=1)
    return change, float(rows @ np.arange(size) / max(rows.sum(), 1e-9))


def test_every_finding_shows_in_the_lateral_at_its_height_and_with_its_severity():
    heights, amounts, names = (collections.defaultdict(list) for _ in range(3))
    for study in (phantom.study(2, index) for index in range(500)):
        findings = study.findings
        if len(findings) != 1 or study.technique.inspiration != "normal":
            continue
        change, height = seen(study)
        names[findings[0].name].append(np.abs(change).max())
        if findings[0].name in ("consolidation", "nodule", "atelectasis"):
            heights[findings[0].zone].append(height)
        amounts[findings[0].name, findings[0].severity].append(np.abs(change).sum())
    assert set(names) == set(phantom.LABELS)
    for name, changes in names.items():
        assert np.median(changes) > 25, (name, changes)
    assert np.mean(heights["upper"]) + 8 < np.mean(heights["mid"]) < np.mean(heights["lower"]) - 5
    for name, degrees in (
        ("pleural effusion", ("small", "moderate", "large")),
        ("cardiomegaly", ("mild", "moderate", "severe")),
        ("nodule", ("12 mm", "20 mm", "28 mm")),
    ):
        sizes = [np.mean(amounts[name, degree]) for degree in degrees]
        assert sizes == sorted(sizes), (name, sizes)


def test_the_lateral_shows_its_patient():
    """Without findings, the trunk of a lateral is that of the frontal image of the same patient."""
    patients = [study for study in STUDIES if not study.lesions]
    width = [study.patient.half_width + study.patient.soft_tissue for study in patients]
    shown = [(lateral.render(study, 64)[24:40] > 60).sum() for study in patients]
    assert np.corrcoef(width, shown)[0, 1] > 0.5


def test_the_default_corpus_is_that_of_the_versions_before():
    """Texts and findings exactly; pixels up to the rounding of other processors."""
    source = Phantom(split="train", length=60)
    records = [source[index] for index in range(len(source))]
    content = [[r.id, dict(r.sections), r.labels, [vars(f) for f in r.findings]] for r in records]
    assert (
        hashlib.sha256(json.dumps(content).encode()).hexdigest()
        == "c14c9666d222ffe900fcf90084a1bdce741b0b11563e6ff4d81e773626066e59"
    )
    light = sum(int(source.image(index).sum()) for index in range(len(source)))
    assert light == pytest.approx(27_741_531, rel=1e-5)


def test_the_source_adds_laterals_and_vectors_only_if_asked():
    options = {"split": "val", "length": 90}
    plain, paired = Phantom(**options), Phantom(**options, lateral=True, vector=8)
    assert plain[1].vector is None and len(plain[1].images) == 1
    with pytest.raises(InputError, match="the record has 1 images, no number 1"):
        plain.image(1, 1)
    for position in range(len(plain)):
        one, two = plain[position], paired[position]
        front, side = two.images
        assert (side.projection, side.key) == ("LATERAL", f"{front.key}-lateral")
        np.testing.assert_array_equal(front.load(), one.images[0].load())
        np.testing.assert_array_equal(paired.image(position), front.load())
        np.testing.assert_array_equal(paired.image(position, 1), side.load())
        assert (front.load() != side.load()).any()
        assert {box.image for box in two.boxes} <= {0} and list(two.boxes) == list(one.boxes)
        without = dataclasses.replace(two, images=(), boxes=(), masks=None, vector=None)
        assert without == dataclasses.replace(one, images=(), boxes=(), masks=None)
    corpus = read_corpus("phantom/val", paired, sections=("findings",), views="frontal")
    assert set(corpus.numbers) == {0} and set(corpus.counts) == {2}
    assert corpus.vectors.shape == (len(paired), 8) and np.isfinite(corpus.vectors).all()
    copy = pickle.loads(pickle.dumps(paired.image))
    np.testing.assert_array_equal(copy(0, 1), paired.image(0, 1))


def test_sided_labels_follow_the_findings_only_if_asked():
    options = {"split": "val", "length": 900}
    plain, sided = Phantom(**options), Phantom(**options, sided_labels=True)
    seen = set()
    for position in range(len(plain)):
        one, two = plain[position], sided[position]
        assert one.label_names == phantom.LABELS
        assert two.label_names == phantom.LABELS + phantom.SIDED_LABELS
        present = {name for name, label in zip(two.label_names, two.labels, strict=True) if label}
        expected = {finding.name for finding in two.findings}
        expected |= {
            f"{finding.side} {finding.name}"
            for finding in two.findings
            if finding.side in ("left", "right")
        }
        assert present == expected
        seen |= present
        assert two.labels[: len(phantom.LABELS)] == one.labels
        np.testing.assert_array_equal(two.images[0].load(), one.images[0].load())
    assert seen == {*phantom.LABELS, *phantom.SIDED_LABELS}


def test_vectors_state_the_findings():
    """A ridge regression on 500 phantoms finds them in others, names and sides."""
    facts = sorted({fact for study in STUDIES for f in study.findings for fact in vector.facts(f)})
    facts = [fact for fact in facts if "," not in fact or "side" in fact]
    studies = [phantom.study(0, index) for index in range(800)]
    x = np.array([vector.vector(study, 64, 0.5, 0.0) for study in studies])
    held = [{fact for f in study.findings for fact in vector.facts(f)} for study in studies]
    y = np.array([[fact in stated for fact in facts] for stated in held], float)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    fit = np.linalg.solve(x[:500].T @ x[:500] + 3 * np.eye(65), x[:500].T @ y[:500])
    score, truth = x[500:] @ fit, y[500:] > 0
    for column, fact in enumerate(facts):
        if 5 < truth[:, column].sum() < 295:
            yes, no = score[truth[:, column], column], score[~truth[:, column], column]
            assert np.mean(yes[:, None] > no) > 0.9, fact  # 0.5 by chance


def test_vectors_are_a_fixed_code_with_noise_and_some_are_missing():
    study = next(study for study in STUDIES if study.findings)
    code = np.array(vector.vector(study, 16, 0.0, 0.0))
    same = dataclasses.replace(study, seed=5, index=11)
    np.testing.assert_array_equal(vector.vector(same, 16, 0.0, 0.0), code)
    assert vector.vector(study, 16, 0.5, 0.0) == vector.vector(study, 16, 0.5, 0.0)
    noise = [np.array(vector.vector(s, 16, 0.5, 0.0)) for s in STUDIES if not s.findings]
    assert 0.45 < np.std(noise) < 0.55 and abs(np.mean(noise)) < 0.05
    few, many = (
        {s.index for s in STUDIES if vector.vector(s, 4, 0.5, share) is None}
        for share in (0.2, 0.6)
    )
    assert few < many and 40 < len(few) < 80 and 150 < len(many) < 210
    assert all(vector.vector(s, 4, 0.5, 1.0) is None for s in STUDIES[:20])


def test_some_studies_have_no_report_and_are_else_the_same():
    whole, some = (Phantom(split="train", length=60, unreported=share) for share in (0.0, 0.4))
    lacking = [i for i in range(len(some)) if not some[i].sections]
    assert 10 < len(lacking) < 30
    for i in range(len(some)):
        changed = {"sections": {}, "sentences": ()} if i in lacking else {}
        one, two = dataclasses.replace(whole[i], **changed), some[i]
        for name in ("id", "sections", "sentences", "labels", "findings"):
            assert getattr(one, name) == getattr(two, name), name


def test_bad_options_of_vectors_are_refused():
    with pytest.raises(InputError, match="unreported"):
        Phantom(split="train", unreported=1.5)
    for option in ({"vector": -1}, {"vector_noise": -0.1}, {"vector_missing": 1.5}):
        with pytest.raises(InputError, match="phantom vector"):
            Phantom(split="train", **option)
