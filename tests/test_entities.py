"""Entities of reports, their places in tokens, and relations among them."""

import dataclasses
import functools
import pickle
import time

import numpy as np
import pytest

from benchmarks import entities as benchmark
from mmrl.data import counter
from mmrl.data.corpus import read_corpus
from mmrl.data.entities import graph
from mmrl.data.entities.extract import KINDS, adjacency, extract
from mmrl.data.entities.lexicon import ADJECTIVES, CHOICES, NAMES
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.base import Place, Rows
from mmrl.data.sources.phantom import Phantom
from mmrl.types import InputError
from tests import toys


def named(text, *kinds):
    return [one for one in extract(text) if one.kind in (kinds or ("finding", "device"))]


def told(text):
    """(words, side, zone, severity, change, "-" denied or "?" guessed) of findings and devices."""
    return [
        (
            text[one.start : one.end].lower(), one.side, one.zone, one.severity, one.change,
            "-" * one.negated + "?" * one.uncertain,
        )
        for one in named(text)
    ]  # fmt: skip


SENTENCES = {
    "Small left and moderate right pleural effusions.": [
        ("pleural effusions", "left", "", "small", "", ""),
        ("pleural effusions", "right", "", "moderate", "", ""),
    ],
    "Pleural effusions, large on the left and small on the right.": [
        ("pleural effusions", "left", "", "large", "", ""),
        ("pleural effusions", "right", "", "small", "", ""),
    ],
    "No focal consolidation, effusion, or pneumothorax.": [
        ("consolidation", "", "", "", "", "-"),
        ("effusion", "", "", "", "", "-"),
        ("pneumothorax", "", "", "", "", "-"),
    ],
    "No pneumothorax is seen, but a small right effusion persists.": [
        ("pneumothorax", "", "", "", "", "-"),
        ("effusion", "right", "", "small", "stable", ""),
    ],
    "Patchy opacity in the left upper zone, suspicious for pneumonia.": [
        ("opacity", "left", "upper", "patchy", "", ""),
        ("pneumonia", "left", "upper", "patchy", "", "?"),
    ],
    "Opacity in the right lower lobe is concerning for pneumonia.": [
        ("opacity", "right", "lower", "", "", ""),
        ("pneumonia", "right", "lower", "", "", "?"),
    ],
    "Cannot exclude a small left apical pneumothorax.": [
        ("pneumothorax", "left", "upper", "small", "", "?"),
    ],
    "The effusion is not excluded.": [("effusion", "", "", "", "", "?")],
    "Left effusion and atelectasis.": [
        ("effusion", "left", "", "", "", ""),
        ("atelectasis", "left", "", "", "", ""),
    ],
    "Atelectasis or scarring at the right base.": [
        ("atelectasis", "right", "lower", "", "", "?"),
        ("scarring", "right", "lower", "", "", "?"),
    ],
    "Bilateral effusions and mild cardiomegaly.": [
        ("effusions", "bilateral", "", "", "", ""),
        ("cardiomegaly", "", "", "mild", "", ""),
    ],
    "The heart is moderately enlarged.": [("enlarged", "", "", "moderately", "", "")],
    "The heart is not enlarged.": [("enlarged", "", "", "", "", "-")],
    "Heart size is normal.": [("normal", "", "", "", "", "-")],
    "Heart size is normal and the lungs are normal.": [("normal", "", "", "", "", "-")],
    "Left greater than right basilar opacities.": [("opacities", "bilateral", "lower", "", "", "")],
    "Small 4 mm nodule.": [("nodule", "", "", "small", "", "")],
    "A 4 mm calcified granuloma.": [("granuloma", "", "", "4 mm", "", "")],
    "Mildly displaced right rib fracture.": [("rib fracture", "right", "", "", "", "")],
    "Left pacemaker with leads in the right ventricle.": [
        ("pacemaker", "left", "", "", "", ""),
        ("leads", "", "", "", "", ""),
    ],
    "The previously seen left effusion has resolved.": [
        ("effusion", "left", "", "", "resolved", "-")
    ],
    "The lungs are clear.": [],
    "": [],
}


@pytest.mark.parametrize("text", SENTENCES)
def test_findings_have_the_attributes_that_their_sentence_states(text):
    assert told(text) == SENTENCES[text]


def test_places_sentences_and_clauses_are_those_of_the_report():
    parts = ("Small left effusion.", " Hiatal hernia;  no edema.", "\n\nThe aorta is tortuous.")
    text = "".join(parts)
    found = extract(text)
    assert [text[one.start : one.end] for one in found if one.kind in CHOICES] == [
        "effusion", "Hiatal hernia", "edema", "aorta", "tortuous",
    ]  # fmt: skip
    assert [one.sentence for one in named(text)] == [0, 1, 1, 2]
    assert [one.clause for one in named(text)] == [0, 1, 2, 3]
    assert list(found) == sorted(found, key=lambda one: (one.start, one.end))
    words = {text[one.start : one.end]: one.kind for one in found}
    assert words["Small"] == "severity" and words["left"] == "side" and words["no"] == "negation"
    assert {one.kind for one in found} <= set(KINDS)


def test_a_sentence_is_read_the_same_wherever_it_stands():
    before = "Scoliosis. "
    for text in SENTENCES:
        moved = [
            dataclasses.replace(
                one,
                start=one.start + len(before),
                end=one.end + len(before),
                sentence=one.sentence + 1,
                clause=one.clause + 1,
            )
            for one in extract(text)
        ]
        assert [one for one in extract(before + text) if one.start >= len(before)] == moved


def test_degrees_have_levels_and_sizes_have_none():
    assert [one.degree for one in named("Mild edema. Moderate-sized effusion. Severe edema.")] == [
        0, 1, 2,
    ]  # fmt: skip
    assert [one.degree for one in named("A 12 mm nodule. A mass.")] == [None, None]


def test_adjacency_pairs_findings_with_the_anatomy_of_their_clause():
    text = "Opacity in the left lung, effusion at the right base; cardiomegaly."
    found = extract(text)
    pairs = {(found[i].name, found[j].name) for i, j in adjacency(found)}
    assert pairs == {("opacity", "lung"), ("effusion", "lung base")}


@pytest.mark.parametrize(
    "unit", ["small left effusion and no ", "effusion is not seen, ", "a b c ", "left right ", "ab"]
)
def test_time_grows_linearly_with_the_length(unit):
    def seconds(length):
        text = (f"{length} " + unit * length)[:length]
        began = time.process_time()
        extract(text)
        return time.process_time() - began

    extract(unit * 2000)
    one, eight = min(seconds(5000 + n) for n in range(3)), seconds(40000)
    assert eight < 8 * 5 * max(one, 0.002)  # quadratic time would be 64 times as long


def test_the_lexicon_is_consistent():
    assert all(name == " ".join(name.lower().split()) for name in NAMES)
    for rule in ADJECTIVES:
        assert rule.organs <= set(CHOICES["anatomy"]) and rule.finding in CHOICES["finding"]
    assert all(named(name, *CHOICES) for name in NAMES)


def test_phantom_sentences_are_read_without_error():
    pairs, implied = benchmark._phantom_pairs(5, 60)
    tallies = benchmark.judge(pairs)
    for name in ("mention", "side", "severity", "negation"):
        tally = tallies[name]
        assert tally.right == tally.found == tally.true > 50, name
    assert implied["sentences"] > 0


def test_the_benchmark_counts_errors_by_kind():
    one = functools.partial(benchmark.Read, "effusion")
    truth = [one("left", "small"), benchmark.Read("edema", negated=True), benchmark.Read("mass")]
    found = [one("right", ""), benchmark.Read("edema"), benchmark.Read("nodule")]
    tallies = benchmark.judge([(truth, found), ([one("left")], [one("left")])])
    counts = {name: (t.right, t.found, t.true, +t.errors) for name, t in tallies.items()}
    assert counts == {
        "mention": (3, 4, 4, {"missed": 1, "not in the truth": 1}),
        "side": (1, 2, 2, {"another": 1}),
        "severity": (0, 0, 1, {"missed": 1}),
        "negation": (0, 0, 1, {"missed": 1}),
        "uncertainty": (0, 0, 0, {}),
    }


# --- graph ---------------------------------------------------------------------------------------


def test_built_in_relations_use_the_names_of_the_lexicon():
    relations = graph.built_in()
    anatomy, things = set(CHOICES["anatomy"]), {*CHOICES["finding"], *CHOICES["device"]}
    for head, kind, tail in relations:
        assert head in (anatomy if kind == "part_of" else things), head
        assert tail in (things if kind in ("is_a", "suggests") else anatomy), tail
    assert {one.relation for one in relations} == {"located_in", "part_of", "is_a", "suggests"}
    assert len({(one.head, one.tail) for one in relations}) == len(relations)


def test_relations_of_a_table_and_an_ontology(tmp_path):
    table = tmp_path / "own.csv"
    table.write_text(
        'tail,note,head,relation\nLung,x,"Small  nodule",in\nlung,,mass,in\nlung,,mass,in\n'
    )
    assert graph.read(table) == (("small nodule", "in", "lung"), ("mass", "in", "lung"))
    ontology = tmp_path / "own.obo"
    ontology.write_text(
        "format-version: 1.4\n\n[Term]\nid: X:1\nname: Lung disease\n\n[Term]\nid: X:2\n"
        'name: Pneumonia\ndef: "is_a: none" []\nis_a: X:1 ! lung disease\n'
        'relationship: located_in Y:7 {source="z"} ! Lung\nis_a: Z:9\n\n[Typedef]\nid: located_in\n'
        "name: located in\nis_a: X:1\n"
    )
    assert graph.read(ontology) == (
        ("pneumonia", "is_a", "lung disease"),
        ("pneumonia", "located_in", "lung"),
        ("pneumonia", "is_a", "Z:9"),
    )


def test_edges_are_pairs_of_names_in_both_directions_once():
    triples = ("a in b", "b in a", "c is a", "c is c", "c is d")
    relations = [graph.Relation(*triple.split()) for triple in triples]
    assert graph.edges(["c", "b", "a"], relations).tolist() == [[0, 2], [1, 2]]
    assert graph.edges(["c", "b", "a"], relations, ["in"]).tolist() == [[1, 2]]
    none = graph.edges(["c"], relations)
    assert none.shape == (0, 2) and none.dtype == np.int32
    matrix = graph.adjacency_matrix(3, graph.edges(["c", "b", "a"], relations))
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "ends with .csv or .obo"),
        ("a.csv", "head,tail\na,b\n", "no column relation"),
        ("a.csv", "head,relation,tail\na,,b\n", "line 2 has an empty cell"),
        ("a.csv", "head,relation,tail\n", "at least one relation"),
        ("a.obo", "[Term]\nid: X:1\nis_a:\n", "is_a of X:1 names no term"),
        ("missing.csv", None, "No such file"),
        ("a.csv", b"\xff\xfe", "no UTF-8 text"),
    ],
)
def test_bad_relations_are_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        graph.read(tmp_path / name)
    assert message in str(refused.value) and "\n" not in str(refused.value)


# --- inputs --------------------------------------------------------------------------------------


class Reports(toys.ToySource):
    """Studies with given findings."""

    def __init__(self, texts, foreign=()):
        super().__init__(len(texts))
        self.texts, self.foreign = texts, foreign

    def __getitem__(self, index):
        return dataclasses.replace(
            super().__getitem__(index),
            sections={"findings": self.texts[index]},
            language="de" if index in self.foreign else "en",
        )


TEXTS = (
    "Small left effusion. No edema. Possible pneumonia.",
    "No effusion. Right effusion. Edema or pneumonia.",
    "The lungs are clear.",
    "Left effusion.",
)


def opened(name, texts=TEXTS, foreign=(), **options):
    chosen = toys.config(data__sections=("findings",), towers__text__length=64)
    chosen.inputs = {name: options}
    one = inputs.make_one(chosen, name, "text" if name == "concepts" else None)
    corpus = read_corpus("toy/train", Reports(texts, foreign), sections=("findings",))
    reader = pickle.loads(pickle.dumps(one.open(Place(corpus, toys.tokenizer()))))
    rows = list(range(len(texts)))
    return one, reader(Rows(rows, 0, counter.bits(np.uint64(0), np.array(rows))), {})


NAMED = ("edema", "effusion", "pneumonia")


def test_labels_state_what_reports_state_and_leave_open_what_they_guess():
    one, found = opened("entities", foreign=(3,), entities=NAMED)
    assert one.label_names == NAMED
    assert found["values"].tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert found["mask"].tolist() == [
        [True, True, False], [False, True, False], [False] * 3, [False] * 3,
    ]  # fmt: skip
    _, absent = opened("entities", foreign=(3,), entities=NAMED, unstated="absent")
    assert absent["values"].tolist() == found["values"].tolist()
    assert absent["mask"].tolist() == [
        [True, True, False], [False, True, False], [True] * 3, [False] * 3,
    ]  # fmt: skip


def test_a_table_of_entities_is_that_of_the_rows():
    chosen = toys.config(data__sections=("findings",))
    one = inputs.make_one(chosen, "entities", None)
    corpus = read_corpus("toy/train", Phantom(split="train", length=30), sections=("findings",))
    values, mask = one.table(corpus)
    names = {"effusion": "pleural effusion", "nodule": "nodule", "pacemaker": "pacemaker"}
    for name, label in names.items():
        column = one.label_names.index(name)
        truth = corpus.labels[:, corpus.label_names.index(label)]
        assert mask[:, column].any()
        assert (values[mask[:, column], column] == truth[mask[:, column]]).all()


def test_spans_are_the_tokens_of_the_entities():
    one, found = opened("concepts", foreign=(3,), num_entities=5)
    tokenizer, names = toys.tokenizer(), dict(one.names()["entity"])
    for row, text in enumerate(TEXTS[:3]):
        listed = [entity for entity in extract(text) if entity.kind in CHOICES]
        numbers = [names[entity.name] for entity in listed]
        assert found["entity"][row].tolist() == numbers + [-1] * (5 - len(numbers))
        affirmed = [not (entity.negated or entity.uncertain) for entity in listed]
        assert found["affirmed"][row].tolist() == affirmed + [False] * (5 - len(numbers))
        for entity, (start, end) in zip(listed, found["spans"][row], strict=False):
            shown = tokenizer.decode(found["tokens"][row, start:end])
            assert shown.lower() == text[entity.start : entity.end].lower()
    assert (found["spans"][3] == -1).all() and not found["affirmed"][3].any()
    chosen = toys.config(data__sections=("findings",), towers__text__length=64)
    plain = inputs.make_one(chosen, "text", "text")
    corpus = read_corpus("toy/train", Reports(TEXTS, (3,)), sections=("findings",))
    text = plain.open(Place(corpus, tokenizer))(Rows([0, 1, 2, 3], 0, np.zeros(4, np.uint64)), {})
    for array in ("tokens", "mask"):
        np.testing.assert_array_equal(found[array], text[array])


def test_more_entities_and_longer_texts_than_there_is_room_for_are_cut():
    _, some = opened("concepts", num_entities=1, entities=("edema", "effusion"))
    assert some["entity"].tolist() == [[1], [1], [-1], [1]]
    long = "The bases are stable. " * 40 + "Left effusion."
    _, found = opened("concepts", texts=[long, "Left effusion."], entities=("effusion",))
    assert found["entity"][:, 0].tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("entities", {"entities": ("efusion",)}, "efusion"),
        ("entities", {"entities": ("mass", "mass")}, "mass"),
        ("entities", {"unstated": "no"}, "ignore, absent"),
        ("concepts", {"num_entities": 0}, "num_entities=0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(InputError) as refused:
        opened(name, **options)
    assert message in str(refused.value)


def test_concepts_take_the_place_of_the_text():
    chosen = toys.config(data__sections=("findings",))
    chosen.inputs = {"text": {"name": "concepts"}}
    one = inputs.make_one(chosen, "text", "text")
    assert {"tokens", "mask", "spans", "entity", "affirmed"} == set(one.shapes())
    assert one.kind == "text" and one.required
