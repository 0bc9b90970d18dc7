"""Inputs: their arrays, which do not depend on each other, and the records that they need."""

import dataclasses
import functools
import math

import numpy as np
import pytest

from mmrl import build, wiring
from mmrl import config as configs
from mmrl.data import counter, views
from mmrl.data.batches.pipeline import Examples, batch_shapes, training_batches
from mmrl.data.corpus import read_corpus
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.base import Place, Rows
from mmrl.data.labels import Policy
from mmrl.types import ImageRef, InputError, Record
from mmrl.wiring import Wiring
from tests import toys

LABELS = ("Effusion", "Mass", "Edema")
PROJECTIONS = (("PA", "LATERAL"), ("LATERAL", "AP", "PA"), ("PA",), ("UNKNOWN", "LATERAL"))


def level(index: int, number: int) -> np.ndarray:
    return np.full((32, 32), 10 * index + number, np.uint8)


def features(index: int) -> np.ndarray:
    """The bag of a study: 1 to 7 rows, whose first column counts them."""
    rows = np.arange(1 + index % 7, dtype=np.float16)
    return np.stack([rows, *[np.full_like(rows, index)] * 4], axis=1)


class Studies(toys.ToySource):
    """Studies of one to three images, with labels and times; some with a vector, some with a bag.

    Two follow each other in each patient.
    """

    def __getitem__(self, index: int) -> Record:
        images = tuple(
            ImageRef(f"{index}-{number}", functools.partial(level, index, number), projection)
            for number, projection in enumerate(PROJECTIONS[index % 4])
        )
        sections = super().__getitem__(index).sections
        return dataclasses.replace(
            super().__getitem__(index),
            images=images,
            sections={**sections, "impression": f"Case {index} is stable. Nodule {index}."},
            label_names=LABELS,
            labels=tuple(np.random.default_rng(index).integers(-2, 2, len(LABELS)).tolist()),
            vector=None if index % 3 == 0 else [index + n / 8 for n in range(5)],
            time=100 * index,
            bag=None if index % 5 == 0 else functools.partial(features, index),
        )


class Changed(Studies):
    """Studies of which some are changed: index -> fields."""

    def __init__(self, length: int, changes: dict[int, dict]) -> None:
        super().__init__(length)
        self.changes = changes

    def __getitem__(self, index: int) -> Record:
        return dataclasses.replace(super().__getitem__(index), **self.changes.get(index, {}))


def config(**changes):
    """The small config with a vector tower, labels and a second text."""
    chosen = toys.config(data__sections=("findings",), batch_size=8)
    chosen.towers.vector = {"name": "mlp", "size": 5, "width": 8, "heads": {"embedding": 32}}
    chosen.inputs = {
        "labels": {"label_names": LABELS[::-1]},
        "impression": {"name": "text", "sections": ("impression",), "required": False},
        "crops": {"num_crops": 3, "crop_size": 16, "crop_scale": (0.1, 0.5)},
        "images": {"max_images": 2},
        "bag": {"max_elements": 3},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = chosen
        for part in parents:
            node = node[part]
        node[last] = value
    return chosen


def wired(chosen, *names):
    """Full names of encodings, and of arrays of inputs that no tower encodes."""
    arrays = [name for name in names if name.partition(".")[0] in ("labels", "entities")]
    encodings = [name for name in names if name not in arrays]
    return Wiring.of(wiring.own_inputs(chosen.towers), encodings, arrays)


def made_of(chosen, *names):
    return inputs.make(chosen, wired(chosen, *names))


def read(made, source, *, sections=("findings",), choice="first", **options):
    needed = inputs.needs(made, sections)
    return read_corpus(
        "studies/train",
        source,
        sections=needed.sections,
        views=choice,
        need_images=needed.images,
        need_texts=needed.texts,
        more=needed.more,
        **options,
    )


def batches(chosen, made, corpus, count=6):
    tokenizers = {one.tower_name: toys.tokenizer() for one in made.values() if one.kind == "text"}
    iterator = training_batches(
        corpus, made, tokenizers, chosen.data, seed=3, batch_size=chosen.batch_size
    )
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


def rows(indices, step=3):
    return Rows(indices, step, counter.bits(np.uint64(7), np.asarray(indices)))


def arrays_of(chosen, name, corpus, indices, *, train=False, tower=""):
    one = inputs.make_one(chosen, name, tower or None)
    place = Place(corpus, toys.tokenizer(), train)
    return one, one.open(place)(rows(indices), {})


# Input -> the tower that reads it. `impression` is a text of its own name that may be absent.
READERS = {
    "image": "image",
    "second": "image",
    "text": "text",
    "perturbed": "text",
    "impression": "text",
    "labels": "",
    "entities": "",
    "concepts": "text",
    "sentences": "text",
    "whole_words": "text",
    "vector": "vector",
    "crops": "image",
    "images": "image",
    "bag": "vector",
    "prior": "image",
    "prior_text": "text",
    "label_prompts": "text",
    "relations": "text",
}


def test_every_input_is_tested():
    assert set(build.choices("input")) == set(READERS) - {"impression"}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_the_arrays_of_an_input_are_those_of_its_shapes(name, train):
    chosen = config()
    made = made_of(chosen, "image.embedding", "text@impression.embedding")
    corpus = read(made, Studies(12))
    indices = [7, 2, 11, 2, 0]
    one, found = arrays_of(chosen, name, corpus, indices, train=train, tower=READERS[name])
    assert one.tower_name == READERS[name]
    assert set(found) - {"group"} == set(one.shapes())
    for array, (shape, dtype) in one.shapes().items():
        assert found[array].shape == (len(indices), *shape), array
        assert found[array].dtype == dtype, array
    for array, numbers in one.names().items():
        assert set(found[array].ravel().tolist()) <= set(numbers.values())


def test_words_start_where_the_tokenizer_says():
    chosen = config()
    _, found = arrays_of(
        chosen, "whole_words", read({}, Studies(6)), [4, 1], train=False, tower="text"
    )
    for tokens, starts in zip(found["tokens"], found["starts"], strict=True):
        words = toys.tokenizer().words(tokens)
        assert np.flatnonzero(starts).tolist() == [places[0] for _, places in words]
        assert 0 < starts.sum() < sum(len(places) for _, places in words)


NAMES = (
    "image.embedding",
    "text.embedding",
    "text@perturbed.embedding",
    "image@second.embedding",
    "text@impression.embedding",
    "text@sentences.embedding",
    "text@concepts.embedding",
    "text@whole_words.embedding",
    "entities.values",
    "vector.embedding",
    "labels.values",
    "image@crops.embedding",
    "image@images.embedding",
    "vector@bag.embedding",
    "image@prior.embedding",
    "text@prior_text.embedding",
    "text@label_prompts.embedding",
)
JITTERS = {"data__crop_scale": (0.5, 0.9), "data__brightness": 0.3, "data__text": "sentence"}


@pytest.mark.default_cases(14)
@pytest.mark.parametrize("choice", views.CHOICES)
@pytest.mark.parametrize("added", NAMES)
def test_an_input_changes_no_array_of_the_others(added, choice):
    chosen = config(**JITTERS)
    names = NAMES
    if choice == "each":  # then there are no studies of several images
        if added == "image@images.embedding":
            return
        names = tuple(name for name in NAMES if name != "image@images.embedding")
    others = [name for name in names if name != added]
    without, whole = made_of(chosen, *others), made_of(chosen, *names)
    (name,) = set(whole) - set(without)
    before = batches(chosen, without, read(without, Studies(24), choice=choice))
    after = batches(chosen, whole, read(whole, Studies(24), choice=choice))
    for one, two in zip(before, after, strict=True):
        new = {f"{name}.{array}" for array in whole[name].shapes()}
        assert set(two) - set(one) == new
        # Duplicate groups are those of the reports that are read.
        for array in set(one) - ({"group"} if name == "text" else set()):
            np.testing.assert_array_equal(one[array], two[array], err_msg=array)
    shapes = batch_shapes(whole, 8)
    assert {n: (s.shape, s.dtype) for n, s in shapes.items()} == {
        n: (array.shape, array.dtype) for n, array in after[0].items()
    }


def test_an_input_of_another_name_draws_other_random_numbers():
    chosen = config(**JITTERS)
    chosen.inputs.another = {"name": "image"}
    chosen.inputs.copies = {"name": "perturbed"}
    names = ("image.embedding", "image@another.embedding")
    made = made_of(chosen, *names, "text@perturbed.embedding", "text@copies.embedding")
    one = batches(chosen, made, read(made, toys.ToySource(24)), 1)[0]
    assert (one["image.pixels"] != one["another.pixels"]).any(axis=(1, 2, 3)).all()
    assert (one["perturbed.tokens"] != one["copies.tokens"]).any()


def test_equal_further_texts_join_a_duplicate_group():
    made = made_of(config(), "text.embedding", "text@impression.embedding")
    same = {"sections": {"findings": "Small effusion.", "impression": "Stable."}}
    other = {"sections": {"findings": "Large nodule.", "impression": "STABLE"}}
    empty = [{"sections": {"findings": f"Mild opacity {n}."}} for n in range(2)]
    corpus = read(made, Changed(6, {1: same, 3: other, 4: empty[0], 5: empty[1]}))
    assert corpus.groups[1] == corpus.groups[3]
    assert len(set(corpus.groups.tolist())) == 5


def shown(pixels):
    """The study and the number of the image in it, from the level of its pixels."""
    return divmod(pixels.reshape(len(pixels), -1).max(axis=1).astype(int), 10)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("choice", views.CHOICES)
def test_second_is_another_image_of_the_record(choice):
    chosen = config()
    made = made_of(chosen, "image.embedding", "image@second.embedding")
    corpus = read(made, Studies(16), choice=choice)
    counts = [len(PROJECTIONS[index % 4]) for index in range(16)]
    met = set()
    for batch in batches(chosen, made, corpus, 60):
        studies, first = shown(batch["image.pixels"])
        same, second = shown(batch["second.pixels"])
        present = batch["second.present"]
        positions = corpus.positions[batch["index"]]
        np.testing.assert_array_equal(studies, positions)
        np.testing.assert_array_equal(present, [counts[n] > 1 for n in positions])
        assert not batch["second.pixels"][~present].any()
        np.testing.assert_array_equal(same[present], positions[present])
        assert (first != second)[present].all()
        met |= set(zip(same[present].tolist(), first[present], second[present], strict=True))
    # Each of the other images is drawn.
    shows = {(study, first) for study, first, _ in met}
    assert len(met) == sum(counts[study] - 1 for study, _ in shows)


@pytest.mark.parametrize("choice", views.CHOICES)
def test_second_is_the_next_image_in_evaluation(choice):
    chosen = config(**JITTERS)
    corpus = read(made_of(chosen, "image.embedding"), Studies(16), choice=choice)
    data = Examples(chosen, corpus, {"text": toys.tokenizer()})
    every = range(len(corpus))
    found = data.arrays(["image", "second"], every, "image")
    _, first = shown(found["image.pixels"])
    studies, second = shown(found["second.pixels"])
    for index, present in enumerate(found["second.present"]):
        count = len(PROJECTIONS[corpus.positions[index] % 4])
        assert present == (count > 1) and first[index] == corpus.numbers[index]
        if present:
            assert studies[index] == corpus.positions[index]
            assert second[index] == (first[index] + 1) % count
    for index in every:  # alone, and by another reader
        again = Examples(chosen, corpus, {}).arrays(["second"], [index], "image")
        for name, array in again.items():
            np.testing.assert_array_equal(array[0], found[name][index])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"blank": "zero"},
        {"uncertain": "ones"},
        {"uncertain": "zeros", "labels": {"Mass": "classes", "Edema": "ignore"}},
        {"preset": "u_multiclass"},
    ],
)
def test_labels_follow_the_policy(policy, train):
    chosen = config()
    chosen.data.label_policy.update(policy)
    corpus = read(made_of(chosen, "image.embedding"), Changed(24, {5: {"label_names": ()}}))
    _, found = arrays_of(chosen, "labels", corpus, range(24), train=train)
    applied = Policy.from_config(chosen.data.label_policy)
    for index, (values, mask) in enumerate(zip(found["values"], found["mask"], strict=True)):
        record = Studies(24)[index]
        if index == 5:  # states none
            record = dataclasses.replace(record, labels=(-2,) * len(LABELS))
        known = applied.of(record)
        names = zip(LABELS[::-1], values.tolist(), mask.tolist(), strict=True)
        for name, value, kept in names:
            assert kept == (name in known)
            assert value == known.get(name, 0)


def test_an_input_may_have_a_label_policy_of_its_own():
    chosen = config(inputs__labels__label_policy={"uncertain": "ones"})
    corpus = read(made_of(chosen, "image.embedding"), Changed(1, {0: {"labels": (-1, -2, 0)}}))
    _, found = arrays_of(chosen, "labels", corpus, [0])
    assert found["values"].tolist() == [[0, 0, 1]] and found["mask"].tolist() == [[1, 0, 1]]


def test_labels_that_do_not_exist_are_refused_with_the_choices():
    corpus = read(made_of(config(), "image.embedding"), Studies(4))
    chosen = config(inputs__labels__label_names=("Efusion",))
    with pytest.raises(
        InputError,
        match=r"label in config.inputs.labels.label_names 'Efusion' \(did you mean 'Effusion'\?\); "
        "choices: Effusion, Mass, Edema",
    ):
        arrays_of(chosen, "labels", corpus, [0])
    with pytest.raises(InputError, match=r"config.inputs.labels.label_names is empty; list"):
        made_of(config(inputs={}), "labels.values")


@pytest.mark.parametrize("train", [True, False])
def test_rows_without_a_vector_are_zero_and_absent(train):
    chosen = config()
    half = [1.0, math.nan, 2.0, 3.0, 4.0]
    corpus = read(made_of(chosen, "image.embedding"), Changed(8, {4: {"vector": half}}))
    _, found = arrays_of(chosen, "vector", corpus, range(8), train=train, tower="vector")
    for index in range(8):
        absent = index % 3 == 0 or index == 4
        expected = np.zeros(5) if absent else index + np.arange(5) / 8
        np.testing.assert_array_equal(found["values"][index], expected.astype(np.float32))
        assert found["present"][index] == (not absent)


def test_vectors_of_another_size_are_refused():
    chosen = config(towers__vector__size=4)
    made = made_of(chosen, "image.embedding")
    message = r"studies/train has vectors of 5 numbers; input 'vector' needs 4, the size of its"
    with pytest.raises(InputError, match=message):
        arrays_of(chosen, "vector", read(made, Studies(4)), [0], tower="vector")
    with pytest.raises(InputError, match="studies/train has no vectors; input 'vector' needs 4"):
        arrays_of(chosen, "vector", read(made, toys.ToySource(4)), [0], tower="vector")
    with pytest.raises(InputError, match=r"vectors of \[3, 5\] numbers; expected one size"):
        read(made, Changed(4, {2: {"vector": (1.0, 2.0, 3.0)}}))


SILENT = {2: {"sections": {"findings": " "}}, 5: {"sections": {}}}
BLIND = {1: {"images": ()}, 6: {"images": ()}}


def reasons(corpus):
    return {reject.id: reject.reason for reject in corpus.rejects}


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (("image.embedding",), {"toy:1": "missing_image", "toy:6": "missing_image"}),
        (("image@second.embedding",), {}),
        (("text.embedding",), {"toy:2": "empty_report", "toy:5": "empty_report"}),
        (("text@perturbed.embedding",), {"toy:2": "empty_report", "toy:5": "empty_report"}),
        (("text@impression.embedding",), {}),
        (("labels.values", "vector.embedding"), {}),
        (
            ("image.embedding", "text.embedding"),
            {
                "toy:1": "missing_image",
                "toy:2": "empty_report",
                "toy:5": "empty_report",
                "toy:6": "missing_image",
            },
        ),
    ],
)
def test_records_are_rejected_for_what_is_read_alone(names, refused):
    chosen = config()
    made = made_of(chosen, *names)
    corpus = read(made, Changed(8, SILENT | BLIND))
    assert reasons(corpus) == refused
    assert len(corpus) == 8 - len(refused)


def test_a_further_text_is_required_unless_the_config_says_otherwise():
    findings = {"sections": {"findings": "Clear."}}
    chosen = config()
    made = made_of(chosen, "text.embedding", "text@impression.embedding")
    corpus = read(made, Changed(4, {2: findings}))
    assert not corpus.rejects
    _, found = arrays_of(chosen, "impression", corpus, range(4), tower="text")
    assert found["present"].tolist() == [True, True, False, True]
    empty = toys.tokenizer().encode("", 24)  # not masked as a whole: attention needs a token
    np.testing.assert_array_equal(found["tokens"][2], empty.tokens)
    np.testing.assert_array_equal(found["mask"][2], empty.mask)
    text = toys.tokenizer().encode("Case 3 is stable. Nodule 3.", 24)
    np.testing.assert_array_equal(found["tokens"][3], text.tokens)
    chosen = config(inputs__impression__required=True)
    made = made_of(chosen, "text.embedding", "text@impression.embedding")
    assert "present" not in made["impression"].shapes()
    corpus = read(made, Changed(4, {2: findings}))
    assert reasons(corpus) == {"toy:2": "empty_report"}
    assert corpus.rejects[0].detail == "none of impression in findings"
    with pytest.raises(InputError, match=r"made of impression, and records have findings: choose"):
        read_corpus("toy", Changed(1, {0: findings}), sections=("impression",))


@pytest.mark.parametrize("choice", ["report", "section", "sentence", "sentences"])
def test_a_text_that_may_be_absent_is_drawn_in_parts_where_it_is_there(choice):
    chosen = config(data__text=choice)
    chosen.inputs.text = {"required": False}
    made = made_of(chosen, "text.embedding")
    corpus = read(made, Changed(16, SILENT))
    assert not corpus.rejects
    for batch in batches(chosen, made, corpus, 6):
        absent = np.isin(batch["index"], list(SILENT))
        np.testing.assert_array_equal(batch["text.present"], ~absent)
        assert (batch["text.mask"][absent].sum(axis=1) == 2).all()  # begin and end
        assert (batch["text.mask"][~absent].sum(axis=1) > 2).all()
        silent = batch["group"][absent].tolist()  # no text equals none
        assert len(set(silent)) == len(silent)


def trained_on(chosen, source):
    """Corpus and first batch of a config that is checked as a whole."""
    configs.validate(chosen)
    made = inputs.make(chosen, wiring.wire(chosen)[0])
    corpus = read(made, source, sections=chosen.data.sections)
    return corpus, batches(chosen, made, corpus, 1)[0]


def test_a_corpus_of_texts_alone_is_trained_on():
    chosen = config()
    del chosen.towers.image, chosen.towers.vector
    text = {"image": "text.embedding", "text": "text@impression.embedding"}
    chosen.objectives = {"global_contrastive": {"reads": text}}
    corpus, batch = trained_on(chosen, Changed(9, {n: {"images": ()} for n in range(9)}))
    assert len(corpus) == 9 and not corpus.rejects
    assert {name.partition(".")[0] for name in batch} == {"text", "impression", "group", "index"}
    data = Examples(chosen, corpus, {"text": toys.tokenizer()})
    found = data.arrays(["text", "impression"], range(9), "text")
    np.testing.assert_array_equal(found["text.tokens"][batch["index"]], batch["text.tokens"])


def test_images_with_labels_alone_are_trained_on():
    chosen = config()
    del chosen.towers.text, chosen.towers.vector
    chosen.towers.image.heads = {"labels": 3}
    chosen.objectives = {"label_classification": {}}
    corpus, batch = trained_on(chosen, Changed(9, {n: {"sections": {}} for n in range(9)}))
    assert len(corpus) == 9 and not corpus.rejects
    assert set(batch) == {"image.pixels", "labels.values", "labels.mask", "group", "index"}
    assert len(set(corpus.groups.tolist())) == 9  # empty texts equal no other
    data = Examples(chosen, corpus, {})
    found = data.arrays(["image"], range(9), "image")["image.pixels"]
    np.testing.assert_array_equal(found[batch["index"]], batch["image.pixels"])


@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("text", {"length": 30}),
        ("text", {"vocab_size": 200}),
        ("text", {"tokenizer_model": "unigram"}),
        ("image", {"size": 40}),
    ],
)
def test_towers_that_need_other_arrays_of_one_input_are_refused(tower, changes):
    chosen = config()
    other = f"{tower}_2"
    chosen.towers[other] = {**chosen.towers[tower].to_dict(), "input": tower}
    names = (f"{tower}.embedding", f"{other}.embedding")
    assert list(made_of(chosen, *names)) == [tower]  # alike: they share it
    chosen.towers[other].update(changes)
    message = (
        f"towers '{tower}' and '{other}' read input '{tower}' with other sizes or tokenizers; give "
        f"one of them an input of its own: config.towers.{other}.input={other} and "
        f"config.inputs.{other}.name={tower}"
    )
    with pytest.raises(InputError) as caught:
        made_of(chosen, *names)
    assert str(caught.value) == message
    chosen.towers[other].input = other
    chosen.inputs[other] = {"name": tower}
    made = made_of(chosen, *names)
    assert [made[name].tower_name for name in (tower, other)] == [tower, other]


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (("image@text.embedding",), {}, "tower 'image' is of kind image and cannot read input 'te"),
        (("vector@image.embedding",), {}, "tower 'vector' is of kind vector and cannot read input"),
        (
            ("image@labels.embedding",),
            {},
            "tower 'image' cannot read input 'labels', which no tower",
        ),
        (("image@secnd.embedding",), {}, r"unknown input 'secnd' \(did you mean 'second'\?\)"),
        (
            ("text.embedding",),
            {"inputs": {"text": {"section": ()}}},
            r"unknown option in config.inputs.text 'section' \(did you mean 'sections'\?\)",
        ),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(names, changes, message):
    with pytest.raises(InputError, match=message):
        made_of(config(**changes), *names)


def test_arrays_of_an_input_that_no_tower_encodes_are_refused():
    own = wiring.own_inputs(config().towers)
    with pytest.raises(InputError, match="arrays of input 'image' are read, but no tower encodes"):
        inputs.make(config(), Wiring.of(own, [], ["image.pixels"]))
