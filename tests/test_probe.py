"""Probes on planted features, and the linear models behind them against scikit-learn and optax."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import linear_model, preprocessing

from configs import pretrain
from mmrl.data.batches.pipeline import Examples
from mmrl.evaluators import linear, scoring, statistics
from mmrl.evaluators.linear import Items, Targets
from mmrl.evaluators.probe import Probe, small_pixels
from mmrl.training.run import load_corpus
from mmrl.types import InputError, Record
from tests import fakes

NAMES = ("a", "b", "c")


class FakeData(fakes.FakeData):
    """Examples with labels f[N, C], a mask, ages, features, images, and the other splits.

    Two neighbours share a patient; images are `pixels` u8[N, 8, 8, 1].
    """

    def __init__(self, split, values, *, mask=None, features=None, pixels=None, ages=None):
        patients = [f"{split}{i // 2}" for i in range(len(values))]
        super().__init__(["Report."] * len(values), patients=patients)
        self.name, self.sha256 = f"fake/{split}", split
        self.ids = [f"{split}:{i}" for i in range(len(values))]
        self.truth = np.asarray(values, np.int8)
        self.mask = np.ones(self.truth.shape, bool) if mask is None else mask
        self.features, self.ages = np.asarray(features, np.float32), ages
        self.images = pixels
        self.splits = {split: self}
        self.reads_images = True

    def split(self, name):
        return self.splits[name]

    def labels(self, names=()):
        columns = [NAMES.index(name) if name in NAMES else 99 for name in names or NAMES]
        if 99 in columns:
            raise InputError(f"unknown label of {self.name}")
        return tuple(names or NAMES), self.truth[:, columns], self.mask[:, columns]

    def pixels(self, encoding, rows):
        return self.images[list(rows)] if self.reads_images else None

    def record(self, index):
        age = {} if self.ages is None else {"age": self.ages[index]}
        fields = {field.name: "" for field in dataclasses.fields(Record)[:6]}
        known = {"id": self.ids[index], "images": (), "sections": {}, "attributes": age}
        return Record(**fields | known)


class FakePredict:
    """Gives the features of the data; counts the splits encoded."""

    provides = ("image.pooled",)

    def __init__(self, absent=()):
        self.absent, self.encoded = absent, []

    def encode(self, state, data, names):
        self.encoded.append(data.name)
        (block,) = self.stream(state, data, names)
        return block

    def stream(self, state, data, names):
        rows, of = list(range(len(data))), data
        while isinstance(of, statistics.Subset):
            rows, of = [of._indices[row] for row in rows], of._data
        present = np.array([name not in self.absent for name in data.ids])
        yield {names[0]: of.features[rows], "present": present}


def splits(make, sizes=(240, 120, 160), **options):
    """Train, val and test, each from make(rng, n) -> keywords of FakeData; gives the test split."""
    found = {}
    for split, (name, size) in enumerate(zip(("train", "val", "test"), sizes, strict=True)):
        rng = np.random.default_rng([7, split])
        given = {"pixels": rng.integers(0, 255, (size, 8, 8, 1)).astype(np.uint8)}
        found[name] = FakeData(name, **given | make(rng, size) | options)
    for one in found.values():
        one.splits = found
    return found["test"]


def labels(rng, size):
    return (rng.random((size, 3)) < (0.5, 0.3, 0.4)).astype(np.float32)


def planted(kind):
    """Features that state the labels exactly, are all equal, or are noise."""

    def make(rng, size):
        values = labels(rng, size)
        features = {
            "perfect": values + 0.01 * rng.normal(size=values.shape),
            "inverted": -values,
            "constant": np.ones((size, 3)),
            "random": rng.normal(size=(size, 3)),
        }[kind]
        # UNI's penalty and AdamW's steps suit many features, not three.
        return {"values": values, "features": np.tile(features, (1, 64))}

    return make


def run(data, predict=None, **options):
    options = {"bootstrap": 20} | options
    return Probe(predict or FakePredict(), data, **options).run(None)


METHODS = ("linear", "adamw", "uni", "knn")


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("plant", ["perfect", "inverted"])
@pytest.mark.parametrize("method", ["linear", "uni", "knn"])
def test_features_that_state_the_labels_give_one(method, plant):
    """A probe learns the direction, so that an inverted encoder is as good as a perfect one."""
    found = run(splits(planted(plant)), methods=(method,))
    assert found.values[f"{method}_100%/macro_auroc"].value == 1
    assert found.values[f"{method}_100%/macro_auroc"].low == 1
    assert found.values[f"{method}_100%/macro_f1"].value > 0.95
    assert found.values[f"{method}_100%/label/b/specificity_at_90%_sensitivity"].value == 1
    assert abs(found.values[f"{method}_100%/macro_auroc_raw_pixels"].value - 0.5) < 0.1
    blind = found.values[f"{method}_100%/macro_auroc_images_permuted"].value
    assert abs(blind - 0.5) < 0.1
    gain = found.values[f"{method}_100%/macro_auroc_gain_over_images_permuted"]
    assert gain.value == 1 - blind and gain.low > 0.3
    assert found.protocol == "probe@1" and found.n == 160
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("method", METHODS)
def test_features_without_information_are_at_chance(method):
    constant = run(splits(planted("constant")), methods=(method,)).values
    assert constant[f"{method}_100%/macro_auroc"].value == 0.5
    assert constant[f"{method}_100%/macro_auroc_constant"].value == 0.5
    random = run(splits(planted("random")), methods=(method,)).values
    assert abs(random[f"{method}_100%/macro_auroc"].value - 0.5) < 0.1


def test_adamw_approaches_features_that_state_the_labels():
    """In 250 steps of 5e-4, which move a weight by 0.1 at most."""
    values = run(splits(planted("perfect")), methods=("adamw",)).values
    assert values["adamw_100%/macro_auroc"].value > 0.95


def noisy(rng, size):
    values = labels(rng, size)
    features = np.pad(values, ((0, 0), (0, 5)))
    return {"values": values, "features": features + rng.normal(size=features.shape)}


def test_the_evaluated_split_chooses_nothing():
    """With other truth in the evaluated split, scores, strengths and thresholds stay."""
    data = splits(noisy)
    options = {"methods": METHODS, "fractions": (0.2,), "draws": 2, "bootstrap": 0}
    one = run(data, **options)
    data.truth = 1 - data.truth
    two = run(data, **options)
    for name, probe in one.details["probes"].items():
        assert probe["chosen"] == two.details["probes"][name]["chosen"]
        assert probe["thresholds"] == two.details["probes"][name]["thresholds"]
        of_one, of_two = (r.values[f"{name}/macro_auroc"].value for r in (one, two))
        assert of_one == pytest.approx(1 - of_two)  # equal scores, opposite truth
    parts = one.details["probes"]["linear_20%"]
    assert parts["range"]["macro_auroc"]["sets"] == 2
    assert parts["range"]["macro_auroc"]["min"] < parts["range"]["macro_auroc"]["max"]
    assert all(40 <= count <= 60 for count in parts["training_items"])


def test_a_strength_is_the_one_with_the_least_validation_loss():
    data = splits(noisy)
    found = run(data, bootstrap=0)
    chosen = found.details["probes"]["linear_100%"]["chosen"][0]["strength"]
    train, val = data.splits["train"], data.splits["val"]
    scaler = preprocessing.StandardScaler().fit(train.features.astype(np.float64))
    for column, name in enumerate(NAMES):
        losses = []
        for strength in linear.STRENGTHS:
            model = linear_model.LogisticRegression(C=1 / (240 * strength), tol=1e-8)
            model.fit(scaler.transform(train.features), train.truth[:, column])
            p = model.predict_proba(scaler.transform(val.features))[:, 1]
            y = val.truth[:, column]
            losses.append(-np.log(np.where(y > 0.5, p, 1 - p)).mean())
        assert chosen[name] == linear.STRENGTHS[int(np.argmin(losses))]


@pytest.mark.exhaustive
def test_without_a_validation_split_folds_of_the_training_patients_choose():
    data = splits(noisy)
    val = data.splits["val"]
    on_val = run(val, bootstrap=0, methods=METHODS)
    assert on_val.details["chosen_by"] == "5 folds of the training patients"
    probe = Probe(FakePredict(), val)
    part = probe._parts(
        {role: one.data.features for role, one in probe._splits.items()},
        {role: np.ones(len(one.rows), bool) for role, one in probe._splits.items()},
    ).train
    folds = probe._folds(part)
    assert len(folds) == 5 and sum(len(check.x) for _, check in folds) == 240
    for fit, check in folds:
        assert not set(fit.patients) & set(check.patients)
        assert len(fit.x) + len(check.x) == 240
    before = on_val.values["linear_100%/macro_auroc"].value
    val.truth = 1 - val.truth
    again = run(val, bootstrap=0)
    assert again.values["linear_100%/macro_auroc"].value == pytest.approx(1 - before)
    data.splits["val"] = FakeData("val", np.zeros((0, 3)), features=np.zeros((0, 8)))
    assert run(data, bootstrap=0).details["chosen_by"] == "5 folds of the training patients"


def exclusive(rng, size):
    """Classes given one-hot; features with a mean for each."""
    place = rng.integers(0, 3, size)
    features = np.eye(3)[place] * 4 + rng.normal(size=(size, 3))
    return {"values": np.eye(3)[place], "features": np.tile(features, (1, 32))}


def test_exclusive_classes():
    data = splits(exclusive)
    data.truth[:4] = [[1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]]
    found = run(data, kind="classes", methods=("linear", "uni", "knn", "simple_shot", "adamw"))
    assert found.n == 156
    assert found.excluded == {"several classes are present": 2, "no class is present": 2}
    names = ["linear_100%", "uni_100%", "knn_100%", "simple_shot_16_shots"]
    for name in names:
        assert found.values[f"{name}/accuracy"].value > 0.9, name
    assert found.values["simple_shot_1_shots/accuracy"].value > 0.6
    assert found.details["probes"]["simple_shot_4_shots"]["training_items"] == [12, 12, 12]
    assert found.values["knn_100%/accuracy"].chance == pytest.approx(1 / 3)
    strength = found.details["probes"]["linear_100%"]["chosen"][0]["strength"]
    assert strength in linear.STRENGTHS
    assert "calibration" in found.details["probes"]["linear_100%"]
    assert "calibration" not in found.details["probes"]["simple_shot_4_shots"]


def test_a_class_that_a_split_lacks_is_left_out_with_its_examples():
    data = splits(exclusive)
    train = data.splits["train"]
    train.truth[train.truth[:, 2] == 1] = [1, 0, 0]
    found = run(data, kind="classes", bootstrap=0)
    assert found.details["left_out"] == {"c": "no example in fake/train"}
    assert found.details["names"] == ["a", "b"]
    assert found.excluded == {"its class is left out": int(data.truth[:, 2].sum())}
    train.truth[:] = [1, 0, 0]
    with pytest.raises(InputError, match="1 class has examples in every split"):
        Probe(FakePredict(), data, kind="classes")


def test_one_label():
    data = splits(noisy)
    data.mask[:10, 1] = False
    data.truth[10:12, 1] = 2  # uncertain, as a class of its own
    found = run(data, kind="binary", target="b", methods=("linear", "simple_shot"), shots=(0, 2))
    assert found.n == 148 and found.excluded == {"b is unknown": 12}
    values = found.values
    assert 0.6 < values["linear_100%/auroc"].value < 0.95
    assert values["linear_100%/sensitivity_at_90%_sensitivity"].value > 0.75
    for measure in ("specificity", "f1", "sensitivity"):
        exact = values[f"linear_100%/{measure}_at_best_f1"].value
        assert exact == values[f"linear_100%/{measure}"].value
    assert "simple_shot_all_shots/auroc" in values
    assert found.details["probes"]["simple_shot_2_shots"]["training_items"] == [4, 4, 4]


@pytest.mark.exhaustive
def test_unknown_labels_neither_teach_nor_count():
    """What stands where a label is unknown changes nothing."""
    data = splits(noisy)
    for one in data.splits.values():
        one.mask = np.random.default_rng(1).random(one.mask.shape) < 0.7
    first = run(data, methods=("linear", "adamw", "uni", "knn", "simple_shot"))
    for one in data.splits.values():
        one.truth[~one.mask] = 1
    second = run(data, methods=("linear", "adamw", "uni", "knn", "simple_shot"))
    assert {name: one.value for name, one in first.values.items()} == {
        name: one.value for name, one in second.values.items()
    }


def aged(rng, size):
    ages = rng.uniform(20, 90, size)
    features = np.stack([ages / 10 + rng.normal(size=size), rng.normal(size=size)], axis=1)
    texts = [f"{age:.1f}" for age in ages]
    texts[0] = "50+"
    return {"values": labels(rng, size), "features": features, "ages": texts}


def test_a_number():
    data = splits(aged)
    found = run(data, kind="number", target="age")
    assert found.n == 159 and found.excluded == {"no number in attribute age": 1}
    assert 0.75 < found.values["linear_100%/r2"].value < 0.95
    assert found.values["linear_100%/r2_constant"].value < 0.01
    assert found.values["linear_100%/r2_raw_pixels"].value < 0.1
    assert "subgroup/age=20-39/mean_absolute_error" in {
        name.partition("/")[2] for name in found.values
    }
    part = run(data, kind="number", target="age", fractions=(0.1,), draws=2)
    assert part.details["probes"]["linear_10%"]["training_items"] == [24, 24]


def test_shots_come_from_different_patients_and_each_label_has_its_own():
    data = splits(noisy)
    probe = Probe(FakePredict(), data)
    train = data.splits["train"]
    part = next(
        iter(
            [
                probe._parts(
                    {role: one.data.features for role, one in probe._splits.items()},
                    {role: np.ones(len(one.rows), bool) for role, one in probe._splits.items()},
                ).train
            ]
        )
    )
    drawn = probe._shots(part, 4, 0)
    for column in drawn.truth.T:
        for one in (0, 1):
            owners = drawn.patients[column == one]
            assert len(owners) == len(set(owners)) == 4
    other = probe._shots(part, 4, 1)
    assert not np.array_equal(drawn.x, other.x)
    assert np.array_equal(drawn.x, probe._shots(part, 4, 0).x)
    everything = probe._shots(part, 1000, 0)  # a class has fewer patients: all of them
    assert (everything.truth[:, 1] == 1).sum() == len(
        set(np.asarray(train.patients)[train.truth[:, 1] == 1])
    )


def test_examples_without_the_input_are_left_out_everywhere():
    data = splits(noisy)
    absent = tuple(data.ids[:20]) + tuple(data.splits["train"].ids[:30])
    for one in (data, data.splits["train"]):
        one.features[[name in absent for name in one.ids]] = np.nan
    found = run(data, FakePredict(absent))
    assert found.n == 140 and found.excluded == {"an input is missing": 20}
    assert found.details["learned_from"]["excluded"] == {"an input is missing": 30}
    assert found.details["learned_from"]["n"] == 210
    absent += tuple(np.asarray(data.ids)[data.truth[:, 1] == 1])
    with pytest.raises(InputError, match=r"of fake/test that have image\.pooled lack a class"):
        run(data, FakePredict(absent))


def test_regions_are_averaged_and_words_refused():
    data = splits(noisy)
    plain = run(data, bootstrap=0).values["linear_100%/macro_auroc"].value
    for one in data.splits.values():
        shift = np.random.default_rng(0).normal(size=(len(one), 1, 8))
        one.features = np.concatenate(
            [one.features[:, None] + shift, one.features[:, None] - shift], axis=1
        )
    predict = FakePredict()
    found = run(data, predict, bootstrap=0)
    assert found.values["linear_100%/macro_auroc"].value == pytest.approx(plain, abs=1e-3)
    assert not predict.encoded  # regions are streamed and not remembered
    with pytest.raises(InputError, match=r"text\.words has padding"):
        run(data, reads={"features": "text.words"})


def test_features_without_an_image_have_no_rows_about_images():
    data = splits(noisy)
    for one in data.splits.values():
        one.reads_images = False
    found = run(data, reads={"features": "text.embedding"}, bootstrap=0)
    assert found.details["raw_pixels"] is None
    assert not any("pixels" in name or "permuted" in name for name in found.values)
    assert "linear_100%/macro_auroc_constant" in found.values


def test_pixels_are_averaged_down_and_read_once():
    data = splits(planted("perfect"))
    for one in data.splits.values():
        one.images = np.repeat(np.repeat(one.images, 8, axis=1), 8, axis=2)
    small = small_pixels(data, "image.pooled", side=8)
    np.testing.assert_allclose(small * 255, data.images[:, ::8, ::8].reshape(160, 64), rtol=1e-6)
    probe = Probe(FakePredict(), data, bootstrap=0)
    first = probe.run(None)
    for one in data.splits.values():
        one.images = None
    assert probe.run(None).values == first.values


def test_what_cannot_be_probed_is_refused_before_encoding():
    data = splits(noisy)
    predict = FakePredict()
    with pytest.raises(InputError, match="fake/train is the training split"):
        Probe(predict, data.splits["train"])
    for options, message in (
        ({"kind": "label"}, "unknown kind of probe 'label'"),
        ({"kind": "binary"}, "kind='binary' needs a target"),
        ({"target": "a"}, "kind='labels' needs no target"),
        ({"kind": "binary", "target": "z"}, "unknown label of fake/train"),
        ({"kind": "number", "target": "age", "methods": ("knn",)}, "unknown method of kind='num"),
        ({"labels": ("a", "z")}, "unknown label of fake/test"),
        ({"labels": ("a",), "kind": "binary", "target": "b"}, "kind='binary' has the target 'b'"),
        ({"methods": ()}, "no methods"),
        ({"fractions": (0.0,)}, "fraction=0.0"),
        ({"fractions": ()}, "no fractions"),
        ({"shots": (), "methods": ("simple_shot",)}, "no shots"),
        ({"sensitivity": 0.0}, "sensitivity=0.0"),
        ({"strengths": (1.0, 0.0)}, "strengths"),
        ({"draws": 0}, "draws is 0"),
        ({"kind": "number", "target": "age"}, "no example of fake/train can be asked"),
    ):
        with pytest.raises(InputError, match=message):
            Probe(predict, data, **options)
    data.splits["val"].truth[:, 0] = 1
    data.splits["train"].truth[:, 2] = 0
    found = Probe(predict, data)
    assert found.left_out == {
        "a": "fake/val: 120 present and 0 absent",
        "c": "fake/train: 0 present and 240 absent",
    }
    data.truth[:, 1] = 0
    with pytest.raises(InputError, match=r"no label has both classes .* fake/test: 0 present"):
        Probe(predict, data)
    assert not predict.encoded
    features = splits(noisy)
    features.features[3, 0] = np.inf
    with pytest.raises(FloatingPointError, match="of fake/test, first test:3"):
        run(features)


def test_a_part_of_a_split_is_that_split():
    """Its digest is another one; what it may learn from and choose by is not."""
    data = splits(noisy)
    train, val = data.splits["train"], data.splits["val"]
    with pytest.raises(InputError, match="fake/train is the training split"):
        Probe(FakePredict(), statistics.Subset(train, range(100)))
    part = run(statistics.Subset(val, range(60)), bootstrap=0)
    assert part.details["chosen_by"] == "5 folds of the training patients"
    assert part.n == 60


def test_numbers_that_are_all_equal_are_refused():
    data = splits(aged)
    ages, data.ages = data.ages, ["40"] * len(data)
    with pytest.raises(InputError, match=r"160 examples of fake/test .* the same number"):
        Probe(FakePredict(), data, kind="number", target="age")
    data.ages = ages
    with pytest.raises(InputError, match=r"0 examples of fake/test .* the same number"):
        run(data, FakePredict(tuple(data.ids)), kind="number", target="age")


def test_names_state_the_sensitivity_exactly_and_one_patient_has_no_foreign_images():
    data = splits(noisy)
    data.patients = ["p"] * len(data)
    values = run(data, sensitivity=0.995).values
    assert "linear_100%/label/a/f1_at_99.5%_sensitivity" in values
    assert not any("permuted" in name for name in values)
    assert values["linear_100%/macro_auroc"].low is None


def test_labels_and_pixels_of_real_examples():
    """Of phantoms: those named, by default all; the images that the tower reads, or none."""
    config = pretrain.get_config("smoke")
    config.data.length = 200
    data = Examples(config, load_corpus(config, "val"), {})
    names, values, known = data.labels()
    assert names == data.corpus.label_names and known.all() and values.any()
    np.testing.assert_array_equal(values, data.corpus.labels)
    chosen, some, _ = data.labels(("nodule", "cardiomegaly"))
    assert chosen == ("nodule", "cardiomegaly")
    np.testing.assert_array_equal(some[:, 0], values[:, names.index("nodule")])
    config.data.label_names = ("cardiomegaly",)
    assert Examples(config, data.corpus, {}).labels()[0] == ("cardiomegaly",)
    with pytest.raises(InputError, match=r"unknown label of phantom/val 'nodul'.*nodule"):
        data.labels(("nodul",))
    with pytest.raises(InputError, match="'nodule' is given twice"):
        data.labels(("nodule", "nodule"))
    np.testing.assert_array_equal(data.pixels("image.pooled", [2])[0], data.image(2))
    assert data.pixels("text.pooled", [0]) is None
    part = statistics.Subset(data, [3, 1])
    np.testing.assert_array_equal(part.labels(names)[1], values[[3, 1]])
    np.testing.assert_array_equal(part.pixels("image.pooled", [0])[0], data.image(3))


# --- the models


def problem(rows=90, width=5, kind="labels", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width)) * rng.uniform(0.1, 3, width) + 2
    if kind == "classes":
        values = np.eye(3)[rng.integers(0, 3, rows)]
        x[:, :3] += values
    else:
        values = (rng.random((rows, 3)) < 0.4).astype(np.float64)
        x[:, :3] += values
    known = np.ones(values.shape, bool)
    if kind == "labels":
        known = rng.random(values.shape) < 0.8
    return Items(x, Targets(kind, values, known))


@pytest.mark.parametrize("width", [5, 200])
@pytest.mark.parametrize("kind", ["labels", "classes"])
def test_logistic_regression_is_that_of_scikit_learn(kind, width):
    """Also with more features than items."""
    items = problem(kind=kind, width=width)
    x = preprocessing.StandardScaler().fit_transform(items.x)
    strengths = (1.0, 0.1, 0.01)
    for strength, model in zip(strengths, linear.logistic(items, strengths), strict=True):
        found = linear.probabilities(kind, model(items.x))
        if kind == "classes":
            reference = linear_model.LogisticRegression(
                C=1 / (90 * strength), tol=1e-10, max_iter=9999
            )
            reference.fit(x, items.targets.values.argmax(axis=1))
            np.testing.assert_allclose(found, reference.predict_proba(x), atol=5e-4)
            continue
        for column in range(3):
            known = items.targets.known[:, column]
            reference = linear_model.LogisticRegression(
                C=1 / (known.sum() * strength), tol=1e-10, max_iter=9999
            )
            reference.fit(x[known], items.targets.values[known, column])
            np.testing.assert_allclose(
                found[:, column], reference.predict_proba(x)[:, 1], atol=5e-4
            )


@pytest.mark.parametrize("width", [5, 200])
def test_ridge_regression_is_that_of_scikit_learn(width):
    items = problem(width=width, kind="classes")
    y = items.targets.values[:, :1] * 30 + 40
    items = Items(items.x, Targets("number", y, np.ones(y.shape, bool)))
    x = preprocessing.StandardScaler().fit_transform(items.x)
    for strength, model in zip((10.0, 0.1), linear.ridge(items, (10.0, 0.1)), strict=True):
        # The features have unit variance, so that the mean eigenvalue of X'X is n.
        reference = linear_model.Ridge(alpha=strength * 90).fit(x, y[:, 0])
        np.testing.assert_allclose(model(items.x)[:, 0], reference.predict(x), rtol=1e-8)


def test_objective_of_uni_in_closed_form():
    """Two items at +1 and -1: the weights are (-w, w) and the minimum is found along one line.

    The objective is log(1 + exp(-2 w)) + 0.5 / C * sqrt(2) w with C = 2 / 100.
    """
    items = Items(
        np.array([[1.0], [-1.0]]),
        Targets("classes", np.array([[0, 1.0], [1, 0]]), np.ones((2, 2), bool)),
    )
    assert linear.uni_penalty(1, 2) == 25.0

    def value(weights, x=items.x):
        logits = x @ weights
        loss = linear.losses(logits, items.targets)[0][0] / 2
        return loss + linear.uni_penalty(*weights.shape) * np.linalg.norm(weights)

    (model,) = linear.uni(items)
    assert value(model.weights) == pytest.approx(np.log(2), abs=1e-4)  # the penalty wins: w = 0
    # 60 such features: the slope of the loss, sqrt(120 / 2) * ..., exceeds the penalty 25 / 60.
    wide = Items(np.repeat(items.x, 60, axis=1), items.targets)
    (model,) = linear.uni(wide)
    half = linear.uni_penalty(60, 2)
    w = np.linspace(0, 1, 400_001)
    line = np.log1p(np.exp(-2 * 60 * w)) + half * np.sqrt(120) * w
    assert value(model.weights, wide.x) == pytest.approx(line.min(), abs=1e-4)
    assert value(model.weights, wide.x) < np.log(2) - 0.3
    assert not model.bias.any()


def test_uni_asks_every_label_alone():
    items = problem(kind="labels", rows=400, width=60)
    (model,) = linear.uni(items)
    known = items.targets.known[:, 1]
    pair = np.stack([1 - items.targets.values[known, 1], items.targets.values[known, 1]], axis=1)
    one = Items(items.x[known], Targets("classes", pair, np.ones(pair.shape, bool)))
    (alone,) = linear.uni(one)
    np.testing.assert_allclose(
        model.weights[:, 1], alone.weights[:, 1] - alone.weights[:, 0], rtol=1e-6
    )


def test_adamw_steps_as_optax_does():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(4, 3)).astype(np.float32)
    own, reference = linear.AdamW(5e-4, 1e-2), optax.adamw(5e-4, weight_decay=1e-2)
    other = jnp.asarray(value)
    with jax.numpy_dtype_promotion("standard"):
        state = reference.init(other)
        for _ in range(20):
            slope = rng.normal(size=(4, 3)).astype(np.float32)
            value = own.step(value, slope)
            change, state = reference.update(jnp.asarray(slope), state, other)
            other = optax.apply_updates(other, change)
    np.testing.assert_allclose(value, other, rtol=1e-5)


def test_adamw_follows_the_mean_loss_over_known_labels():
    """The first step has the size of the learning rate against the sign of the gradient."""
    items = problem()
    items = Items(items.x.astype(np.float32), items.targets)
    start = np.random.default_rng(3).uniform(-1 / np.sqrt(5), 1 / np.sqrt(5), (6, 3))
    model = next(linear.adamw(items, np.random.default_rng(3), batch=90, learning_rate=1e-3))
    p = linear.probabilities("labels", items.x @ start[:-1] + start[-1])
    slope = items.x.T @ np.where(items.targets.known, p - items.targets.values, 0)
    np.testing.assert_allclose(model.weights - start[:-1], -1e-3 * np.sign(slope), atol=1e-6)
    again = linear.adamw(items, np.random.default_rng(3), epochs=2)
    assert len(list(again)) == 2


def test_gradients_are_those_of_the_loss():
    for kind in ("labels", "classes"):
        x, targets = problem(kind=kind)
        rng = np.random.default_rng(1)
        weights, bias = rng.normal(size=(5, 3)), rng.normal(size=3)
        loss, slope = linear._cross_entropy(x, weights, bias, targets)
        sums, counts = linear.losses(x @ weights + bias, targets)
        assert loss == pytest.approx(float((sums / counts).sum()))
        for row, column in ((0, 0), (4, 2)):
            moved = weights.copy()
            moved[row, column] += 1e-6
            more = linear._cross_entropy(x, moved, bias, targets)[0]
            assert (more - loss) / 1e-6 == pytest.approx(slope[row, column], rel=1e-3, abs=1e-5)


def test_every_label_has_its_own_place_on_the_path():
    """Losses of two labels with minima at different positions; patience ends the path."""
    known = np.ones((1, 2), bool)
    fit = Items(np.ones((1, 1)), Targets("number", np.zeros((1, 2)), known))
    outputs = [(3, 1), (2, 2), (0, 3), (1, 4), (1, 5), (0, 0)]

    def path(items):
        for pair in outputs:
            yield linear.Model(np.zeros((1, 2)), np.array(pair, float))

    found = linear.choose(path, [(fit, fit)])
    assert found.positions.tolist() == [2, 5] and found.model.bias.tolist() == [0, 0]
    found = linear.choose(path, [(fit, fit)], patience=2)
    assert found.positions.tolist() == [2, 0] and found.model.bias.tolist() == [0, 1]
    assert len(found.losses) == 5
    found = linear.choose(path, [(fit, fit)], together=True, patience=2)
    assert found.positions.tolist() == [1] and found.model.bias.tolist() == [2, 2]
    found = linear.choose(path, [(fit, fit), (fit, fit)], fit, patience=2)
    assert found.positions.tolist() == [2, 0] and len(found.of_folds) == 2


def test_rows_may_have_thresholds_of_their_own():
    """Scores on another scale, with a threshold to match, give the same decisions."""
    truth = np.array([True, False, True, False, True])
    scores = np.array([0.9, 0.1, 0.8, 0.7, 0.3])
    answers = scoring.Answers("binary", scores, truth, list("abcde"), ("x",), 0.5)
    moved = dataclasses.replace(answers, scores=scores * 10, threshold=5.0)
    values, _ = scoring.report(
        answers, rows={"moved": [moved], "bare": [scores * 10]}, bootstrap=10
    )
    assert values["f1_moved"].value == values["f1"].value != values["f1_bare"].value
    again, details = scoring.report(answers, repeats=[moved], bootstrap=10)
    assert again["f1"].value == values["f1"].value
    assert details["range"]["f1"]["min"] == details["range"]["f1"]["max"]
