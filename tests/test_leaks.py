"""The leak gate: one planted leak of each kind, caught by its own test."""

import functools
import zlib

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data.corpus import read_corpus
from mmrl.data.overlap import fingerprints, leaks, signatures
from mmrl.data.overlap.fingerprints import Fingerprint
from mmrl.data.reading.drafts import Facts
from mmrl.training import run
from mmrl.training.console import Console
from mmrl.types import ImageRef, InputError, Record
from tests import toys

LONG = (
    "The cardiac silhouette is enlarged and there is a small left pleural effusion with adjacent"
    " atelectasis while the right lung remains clear without pneumothorax"
)


class Planted:
    """Records that share nothing; `changes` at some positions plant the leak."""

    def __init__(self, side, count=40, source="toy", changes=None):
        self.side, self.source, self.total, self.rejects = side, source, count, []
        self.changes = changes or {}

    def __len__(self):
        return self.total

    def __getitem__(self, index):
        rng = np.random.default_rng([zlib.crc32(self.side.encode()), index])
        name = f"{self.side}{index}"
        words = " ".join(f"{word}{rng.integers(1000)}" for word in rng.choice(toys.WORDS, 20))
        image = {"sha256": f"{name:>064}", "phash": int(rng.integers(2**63))}
        fields = {
            "id": f"{self.source}:{name}",
            "source": self.source,
            "patient_id": name,
            "study_id": name,
            "leakage_unit": name,
            "split": "train",
            "sections": {"findings": words},
        } | self.changes.get(index, {})
        image |= fields.pop("image", {})
        return Record(images=(ImageRef("x", functools.partial(toys.noise, 0), **image),), **fields)


def print_of(side, **options):
    source = Planted(side, **options)
    return read_corpus(f"{source.source}/{side}", source, sections=("findings",)).fingerprint


def overlaps(training, held_out):
    return {one.kind: one for one in leaks.compare(training, held_out)}


TRAIN = {3: {"patient_id": "p", "study_id": "s", "leakage_unit": "g"}}
TRAIN[3] |= {"image": {"sha256": "f" * 64, "phash": 2**40 + 12345}}
TRAIN[3] |= {"sections": {"findings": LONG}}


@pytest.fixture(scope="module")
def training():
    return print_of("train", changes=TRAIN)


def test_sets_that_share_nothing_pass(training):
    assert leaks.compare(training, print_of("held")) == []
    assert leaks.not_compared(training, print_of("held")) == []


def test_images_without_digests_are_said_not_to_be_compared(training):
    changes = {index: {"image": {"sha256": ""}} for index in range(40)}
    held = print_of("held", changes=changes)
    assert leaks.not_compared(training, held) == [
        "images were not compared, because toy/held has no image digests"
        " (python -m mmrl.prepare computes them)"
    ]
    other = print_of("other", changes=changes)
    assert "because toy/other and toy/held have no" in leaks.not_compared(other, held)[0]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("patient", {"patient_id": "p"}),
        ("study", {"study_id": "s"}),
        ("leakage_unit", {"leakage_unit": "g"}),
        ("leakage_unit", {"aliases": ("other:1", "toy:g")}),
        ("image", {"image": {"sha256": "f" * 64}}),
        ("similar_image", {"image": {"phash": (2**40 + 12345) ^ 0b1000000000000000000000001}}),
        ("report", {"sections": {"findings": LONG}}),
        (
            "report",
            {"sections": {"findings": LONG.upper().replace(" WHILE", ",\nwhile") + " today."}},
        ),
    ],
)
def test_a_planted_leak_is_caught_and_counted(training, kind, change):
    found = overlaps(training, print_of("held", changes={7: change}))
    assert list(found) == [kind]
    assert (found[kind].count, found[kind].total) == (1, 40)
    assert found[kind].examples == ("toy:held7",)


def test_near_is_near_and_not_more(training):
    far = {"image": {"phash": (2**40 + 12345) ^ 0b1111}}
    other = {"sections": {"findings": LONG.replace("left", "right").replace("clear", "opaque")}}
    assert leaks.compare(training, print_of("held", changes={7: far})) == []
    assert leaks.compare(training, print_of("held", changes={7: other})) == []
    short = {"sections": {"findings": "No acute cardiopulmonary abnormality."}}
    both = [print_of(side, changes={1: short}) for side in ("train", "held")]
    assert leaks.compare(*both) == []


def test_an_image_is_told_once_whatever_its_hash(training):
    same = {"image": {"sha256": "f" * 64, "phash": 2**40 + 12345}}
    assert list(overlaps(training, print_of("held", changes={7: same}))) == ["image"]


@pytest.fixture
def related(monkeypatch):
    """RSNA's images come from NIH's patients; a and b are cut from the same articles."""
    plain = functools.partial(Facts, "", "", "")
    known = {
        "nih": plain(),
        "rsna": plain(within=("nih",)),
        "chest": plain(within=("nih",)),
        "a": plain(namespace="pmc"),
        "b": plain(namespace="pmc"),
    }
    monkeypatch.setattr(fingerprints, "source_facts", known.get)
    monkeypatch.setattr(leaks, "source_facts", known.get)


def test_ids_of_another_corpus_are_followed(related):
    nih = print_of("nih", source="nih", changes={5: {"leakage_unit": "42"}})
    named = {row: {"aliases": (f"nih:{100 + row}",)} for row in range(40)}
    apart = print_of("rsna", source="rsna", changes=named)
    assert leaks.compare(nih, apart) == []
    shared = print_of("rsna", source="rsna", changes=named | {2: {"aliases": ("nih:42",)}})
    assert {kind: one.count for kind, one in overlaps(nih, shared).items()} == {"leakage_unit": 1}
    assert {kind: one.count for kind, one in overlaps(shared, nih).items()} == {"leakage_unit": 1}


def test_related_corpora_whose_records_do_not_tell_count_as_overlapping(related):
    nih, rsna = print_of("nih", source="nih"), print_of("rsna", source="rsna")
    found = overlaps(nih, rsna)["relation"]
    assert (found.count, found.note) == (40, "rsna and nih share records of nih")
    assert overlaps(rsna, nih)["relation"].count == 40
    siblings = overlaps(rsna, print_of("chest", source="chest"))["relation"]
    assert siblings.note == "chest and rsna share records of nih"
    assert leaks.compare(nih, print_of("toy")) == []


def test_articles_shared_by_two_corpora_are_groups(related):
    a = print_of("a", source="a", changes={1: {"leakage_unit": "PMC7"}})
    assert leaks.compare(a, print_of("b", source="b")) == []
    b = print_of("b", source="b", changes={9: {"leakage_unit": "PMC7"}})
    assert overlaps(a, b)["leakage_unit"].examples == ("b:b9",)
    unknown = print_of("b", source="b", changes={9: {"leakage_unit_known": False}})
    assert overlaps(a, unknown)["relation"].count == 1


def test_a_fingerprint_survives_the_disk_without_naming_anyone(training, tmp_path):
    training.save(tmp_path / "f.npz")
    stored = Fingerprint.load(tmp_path / "f.npz")
    held_out = print_of("held", changes={7: TRAIN[3], 9: {"patient_id": "p"}})
    assert leaks.compare(stored, held_out) == leaks.compare(training, held_out)
    assert b"train3" not in (tmp_path / "f.npz").read_bytes()
    assert stored.ids == ()
    (tmp_path / "f.npz").write_bytes(b"PK\x05\x06 no")
    with pytest.raises(InputError, match="no fingerprint of a training split"):
        Fingerprint.load(tmp_path / "f.npz")


def test_the_gate_stops_and_a_waiver_with_reason_opens_it(training, capsys):
    held_out = print_of("held", changes={row: {"patient_id": "p"} for row in range(4)})
    console = Console(active=True)
    with pytest.raises(leaks.LeakError, match=r"patient: 4 of 40 records \(10.0%\)") as caught:
        run.check_leaks(training, held_out, {"waive_leaks": ""}, console)
    assert '--config.data.waive_leaks="patient 0.1 WHY"' in str(caught.value)
    with pytest.raises(leaks.LeakError):
        run.check_leaks(training, held_out, {"waive_leaks": "patient 0.05 x"}, console)
    accepted = {"waive_leaks": "patient 0.1 a follow-up study"}
    found = run.check_leaks(training, held_out, accepted, console)
    assert found["overlaps"]["patient"]["records"] == 4
    assert found["waived"] == {"patient": {"up_to": 0.1, "why": "a follow-up study"}}
    assert "waived patient: a follow-up study" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "given",
    [
        "patient",
        "patient 0.1",
        "patients 0.1 why",
        "patient much why",
        "patient 0 why",
        "patient 2 why",
        "patient 0.1  ",
        "patient 0.1 WHY",
        "patient 0.1 a; patient 0.2 b",
        "patient 0.1 a; study",
    ],
)
def test_waivers_that_say_too_little_are_refused(given):
    config = toys.config()
    config.data.waive_leaks = given
    with pytest.raises(InputError, match=r"config\.data\.waive_leaks"):
        configs.validate(config)


def test_several_waivers_are_separated_by_a_semicolon():
    given = "report 0.25 normal reports repeat; patient 0.1 a follow-up, agreed"
    assert leaks.parse_waivers(given) == {
        "report": (0.25, "normal reports repeat"),
        "patient": (0.1, "a follow-up, agreed"),
    }
    assert leaks.parse_waivers("") == {}
    with pytest.raises(InputError, match="expected a text, KIND SHARE REASON"):
        leaks.parse_waivers((("patient", 0.1, "why"),))


def test_similarity_is_estimated_within_its_error():
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(60)]
    for kept in (60, 50, 30):
        other = words[:kept] + [f"x{n}" for n in rng.integers(10**6, size=60 - kept)]
        (one, two), long_enough = signatures.signatures([" ".join(words), " ".join(other)])
        sets = [{tuple(w[i : i + 3]) for i in range(58)} for w in (words, other)]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert long_enough.all()
        assert abs(signatures.similarity(one, two) - exact) < 0.13  # three standard errors


def test_near_finds_what_a_full_comparison_finds():
    rng = np.random.default_rng(1)
    known = [" ".join(rng.choice(toys.WORDS, 25)) for _ in range(200)]
    asked = known[:20] + [text + " stable" for text in known[20:40]]
    asked += [" ".join(rng.choice(toys.WORDS, 25)) for _ in range(40)]
    one, other = signatures.signatures(known)[0], signatures.signatures(asked)[0]
    match, score = signatures.near(one, other)
    full = signatures.similarity(one[None], other[:, None])
    np.testing.assert_array_equal(match >= 0, full.max(axis=1) >= signatures.NEAR)
    np.testing.assert_allclose(score[match >= 0], full.max(axis=1)[match >= 0])
    np.testing.assert_array_equal(match[:40], np.arange(40))
