"""Precision at K by class, and what retrieval states of duplicates and permuted images."""

import numpy as np
import pytest

from mmrl.evaluators import precision_at_k
from mmrl.evaluators.precision_at_k import PrecisionAtK, precisions
from mmrl.evaluators.retrieval import Retrieval, identical_share
from mmrl.types import InputError
from tests import fakes
from tests.fakes import FakeData, FakePredict, Studies, code


def by_hand(scores, alike, allowed, k):
    """Sorts by score, ties with the other class first."""
    found = []
    for row, same, free in zip(scores, alike, allowed, strict=True):
        order = sorted(np.flatnonzero(free), key=lambda j: (-row[j], same[j]))[:k]
        found.append(np.mean([same[j] for j in order]) if order else np.nan)
    return found


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("itself", [False, True])
def test_precisions_equal_sorting_for_any_chunk(chunk, itself):
    rng = np.random.default_rng(0)
    one, two = rng.integers(-2, 3, size=(2, 21, 3)).astype(np.float32) / 4  # many ties
    classes, owners = rng.integers(3, size=21), rng.integers(6, size=21)
    two = one if itself else two
    allowed = owners[:, None] != owners if itself else np.ones((21, 21), bool)
    ks = (1, 2, 5, 30)
    found = precisions(one, two, classes, ks, owners=owners if itself else None, chunk=chunk)
    for column, k in enumerate(ks):
        expected = by_hand(one @ two.T, classes[:, None] == classes, allowed, k)
        np.testing.assert_allclose(found[:, column], expected, err_msg=str(k))


def test_queries_without_candidates_have_no_precision():
    found = precisions(
        np.eye(3, dtype=np.float32),
        np.eye(3, dtype=np.float32),
        np.array([0, 0, 1]),
        (1,),
        owners=np.array([0, 0, 0]),
    )
    assert np.isnan(found).all()


def five(count=12):
    """`count` studies of each of five classes, and one of two classes; two per patient."""
    names = [f"c{k}" for k in range(5)]
    labels = [tuple(int(c == k) for c in range(5)) for k in range(5) for _ in range(count)]
    data = Studies(labels=[*labels, (1, 1, 0, 0, 0)], label_names=names)
    data.patients = [f"p{i // 2}" for i in range(len(data))]
    data.texts = [f"report {i}" for i in range(len(data))]
    return data, names


def known(data, sign=1):
    """Images and reports of one class have one direction; those of others are orthogonal."""
    of_report = dict(zip(data.texts, data.ids, strict=True))

    def image_of(name):
        return np.eye(5, dtype=np.float32)[data.record(data.ids.index(name)).labels.index(1)]

    return FakePredict(image_of, lambda text: sign * image_of(of_report[text]))


def test_planted_encoders_give_the_known_precisions():
    data, names = five()
    options = {"classes": names, "ks": (5, 12), "permutations": 20, "bootstrap": 50}
    results = PrecisionAtK(known(data), data, **options).run(None)
    values = {name: estimate.value for name, estimate in results.values.items()}
    assert values["P@5"] == values["P@12"] == values["class/c3/P@5"] == 1
    assert values["P@5_images_permuted"] == pytest.approx(0.2, abs=0.04)
    assert results.values["P@5"].chance == pytest.approx(0.2)
    # Of equal embeddings those of another class come first.
    assert values["P@5_constant"] == 0
    assert values["P@5_gain_over_images_permuted"] == 1 - values["P@5_images_permuted"]
    assert results.n == 60 and results.excluded == {"several of the classes": 1}
    inverted = PrecisionAtK(known(data, -1), data, **options).run(None)
    assert inverted.values["P@12"].value == 0
    collapsed = PrecisionAtK(fakes.constant(), data, **options).run(None)
    assert collapsed.values["P@12"].value == 0
    noise = PrecisionAtK(FakePredict(code, code), data, **options).run(None)
    assert noise.values["P@12"].value == pytest.approx(0.2, abs=0.08)
    assert precision_at_k.PROTOCOL == results.protocol == "precision_at_k@1"


def test_images_among_images_leave_out_their_own_patient():
    data, names = five()
    options = {"classes": names, "ks": (10, 12), "bootstrap": 0}
    reads = {"candidates": "image.embedding"}
    results = PrecisionAtK(known(data), data, reads=reads, **options).run(None)
    assert results.values["P@10"].value == 1
    assert results.values["P@12"].value == pytest.approx(10 / 12)  # 12 less two of the patient
    assert results.values["P@10"].chance == pytest.approx(10 / 58)
    assert results.details["left_out_of_candidates"] == "the patient of the query"
    data.patients = ["p"] * len(data)
    with pytest.raises(InputError, match="images of one patient only"):
        PrecisionAtK(known(data), data, reads=reads, **options).run(None)


def test_wrong_classes_and_options_are_refused():
    data, names = five()
    with pytest.raises(InputError, match=r"unknown finding or label .* 'c9'"):
        PrecisionAtK(known(data), data, classes=("c1", "c9"))
    with pytest.raises(InputError, match="expected at least two names of findings or labels"):
        PrecisionAtK(known(data), data)
    with pytest.raises(InputError, match="ks is 0"):
        PrecisionAtK(known(data), data, classes=names, ks=())


# --- retrieval


def test_identical_reports_are_counted_but_for_case_and_layout():
    assert identical_share(["No effusion.", "no  effusion", "Nodule.", "", ""]) == 0.4
    assert identical_share([]) == 0


def test_permuted_images_retrieve_at_chance_and_leave_other_values_alone():
    data = FakeData([f"report {i}" for i in range(40)], patients=[f"p{i // 2}" for i in range(40)])
    results = Retrieval(fakes.informed(data), data, bootstrap=0).run(None)
    values = {name: estimate.value for name, estimate in results.values.items()}
    for direction in ("image_to_text", "text_to_image"):
        assert values[f"{direction}/R@1"] == 1
        assert values[f"{direction}/R@1_images_permuted"] == 0
    assert results.details["identical_report_share"] == 0
    twice = FakeData(["Same."] * 2 + [f"report {i}" for i in range(6)], groups=[0, 0, *range(2, 8)])
    results = Retrieval(fakes.informed(twice), twice, bootstrap=0).run(None)
    assert results.details["identical_report_share"] == results.details["duplicate_share"] == 0.25


def test_every_image_of_a_study_matches_its_report():
    # Two images and texts of one study: each finds the other's text, and that counts.
    study = {"fake:0": 0, "fake:1": 1, "fake:2": 2}
    basis = np.eye(3, dtype=np.float32)
    data = FakeData(["a", "b", "c"], groups=[0, 0, 2])
    crossed = FakePredict(
        lambda name: basis[[1, 0, 2][study[name]]], lambda text: basis["abc".index(text)]
    )
    assert Retrieval(crossed, data, bootstrap=0).run(None).values["image_to_text/R@1"].value == 1
    data.groups = np.arange(3)
    found = Retrieval(crossed, data, bootstrap=0).run(None).values["image_to_text/R@1"].value
    assert found == pytest.approx(1 / 3)


def test_a_class_given_twice_is_refused_and_one_patient_has_no_foreign_images():
    data, names = five()
    with pytest.raises(InputError, match="'c0' is given twice"):
        PrecisionAtK(known(data), data, classes=(*names, "c0"))
    data.patients = ["p"] * len(data)
    values = PrecisionAtK(known(data), data, classes=names, bootstrap=0).run(None).values
    assert "P@5" in values and not any("permuted" in name for name in values)
