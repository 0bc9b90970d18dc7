"""Phantoms of several images and several studies: slices, and a course from study to study."""

import collections

import numpy as np
import pytest

from mmrl.data.phantom import course, slices
from mmrl.data.phantom import study as phantom
from mmrl.data.sources.phantom import Phantom
from mmrl.types import InputError

COUNT = 8
PRIORS = Phantom(split="train", length=900, priors=True, fractions=(1, 0, 0))


def test_a_lesion_is_in_some_slices_only_and_in_one_at_least():
    shares = collections.defaultdict(list)
    for index in range(120):
        study = phantom.study(3, index)
        shown = [slices.section(study, number, COUNT).lesions for number in range(COUNT)]
        for lesion in study.lesions:
            shares[lesion.finding.name].append(sum(lesion in some for some in shown) / COUNT)
    assert set(shares.pop("cardiomegaly")) == {1.0}
    every = [share for some in shares.values() for share in some]
    assert min(every) >= 1 / COUNT and max(every) < 0.6


def test_labels_boxes_and_images_of_slices_agree():
    source = Phantom(split="train", length=60, slices=COUNT)
    plain = Phantom(split="train", length=60)
    for position in range(12):
        record, single = source[position], plain[position]
        assert len(record.images) == COUNT and len({one.key for one in record.images}) == COUNT
        assert (record.labels, record.sections) == (single.labels, single.sections)
        study = phantom.study(0, int(source._indices[position]))
        for number, image in enumerate(record.images):
            pixels = image.load()
            np.testing.assert_array_equal(pixels, source.image(position, number))
            section = slices.section(study, number, COUNT)
            boxes = [box for box in record.boxes if box.image == number]
            assert [box.label for box in boxes] == [box.label for box in phantom.boxes(section, 64)]
            assert {box.label for box in boxes} <= {one.finding.name for one in section.lesions}
        masks = record.masks()
        assert set(masks) == {box.label for box in record.boxes if box.image == 0}
    with pytest.raises(InputError, match="phantom slices 8 with lateral=True; expected at least 0"):
        Phantom(split="train", slices=8, lateral=True)


def test_boxes_of_slices_name_the_sentence_of_their_finding():
    study = next(s for s in map(phantom.study, [3] * 99, range(99)) if len(s.lesions) == 3)
    found = {}
    for box in slices.load_boxes(3, study.index, 64, COUNT):
        found.setdefault(box.label, set()).add(box.sentence)
    whole = {box.label: box.sentence for box in phantom.boxes(study, 64)}
    assert found and all(whole[label] in sentences for label, sentences in found.items())


def test_the_course_is_true_of_both_studies():
    met = collections.Counter()
    for position in range(0, 600, 3):
        first, second, other = (PRIORS[position + n] for n in range(3))
        assert first.patient_id == second.patient_id != other.patient_id
        assert first.time == other.time == 0 and 86_400 <= second.time <= 366 * 86_400
        assert "comparison" not in first.sections and "comparison" not in other.sections
        assert set(first.labels[10:] + other.labels[10:]) == {-2}
        before, now = ({f.name for f in one.findings} for one in (first, second))
        kept = [f for f in second.findings if f.name in before]
        assert kept == [f for f in first.findings if f.name in now]  # the same place and size
        for kind, label in zip(phantom.LABELS, second.labels[10:], strict=True):
            assert label == (-2 if kind not in now else int(kind not in before))
            met[label] += 1
        text = second.sections["comparison"]
        for kind in before | now:
            state = "unchanged" if kind in before & now else "new" if kind in now else "resolved"
            told = [t for section, t in second.sentences if section == "comparison" and kind in t]
            assert len(told) == 1 and told[0] in text
            words = [wording.split("{0}") for wording in course._WORDINGS[state]]
            assert any(told[0].startswith(a.strip()) and told[0].endswith(b) for a, b in words)
        if not before | now:
            assert text in course._NOTHING
    assert 0.85 < met[1] / met[0] < 1.2  # new as often as unchanged


def test_the_second_image_alone_does_not_tell_what_is_new():
    """Given what is seen, new findings are as frequent whatever else is seen."""
    rows = [PRIORS[position] for position in range(1, 900, 3)]
    labels = np.array([one.labels for one in rows])
    several = (labels[:, :10].sum(axis=1) > 1)[:, None]
    rates = [
        (labels[:, 10:][known] == 1).mean()
        for known in ((labels[:, 10:] > -2) & several, (labels[:, 10:] > -2) & ~several)
    ]
    assert abs(rates[0] - rates[1]) < 0.12 and 0.4 < min(rates) < max(rates) < 0.6


def test_courses_have_laterals_and_slices_too():
    for options in ({"lateral": True}, {"slices": 4}):
        source = Phantom(split="train", length=30, priors=True, **options)
        for position in (0, 1):
            for number, image in enumerate(source[position].images):
                np.testing.assert_array_equal(image.load(), source.image(position, number))
