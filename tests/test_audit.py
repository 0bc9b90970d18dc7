"""The audit of prepared corpora: page, terminal and JSON agree, and show what they may."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmrl.data.image import images
from mmrl.data.overlap.leaks import LeakError
from mmrl.preparation import audit_tables, cards, cautions
from mmrl.preparation.audit import audit
from mmrl.preparation.holdings import Holdings
from mmrl.types import Box, InputError
from tests.toy_corpora import Page, audit_tiny, picture, record, stored, tiny, write


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Folder, its numbers, its page."""
    return audit_tiny(tmp_path_factory.mktemp("audit"))


def test_page_is_closed_escaped_and_holds_every_record(audited):
    _, _, page = audited
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in page.tags if tag == "img")
    assert not {tag for tag, attrs in page.tags if "onclick" in attrs}
    assert all(attrs.get("href", "#").startswith("#") for _, attrs in page.tags)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert len(page.cards) == 6
    (hostile,) = (card for card in page.cards if "toy:4" in card)
    assert "A <script>alert(1)</script> mass & <b>more</b>." in hostile  # as text, that is
    assert "presentMass" in hostile.replace(" ", "")


def test_terminal_and_json_tell_the_same(audited, capsys, tmp_path):
    folder, found, _ = audited
    audit([folder], out=str(tmp_path / "out"), lengths=(8, 300), batch_sizes=(2, 3))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 + len(str(tmp_path)) * 2
    again = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert again["corpora"]["toy"] == found
    compared = 0
    for table in audit_tables.tables(found):
        for row in table.rows:
            cells = [row[number] for number in table.numbers if row[number]]
            if cells:
                words = " ".join(cells).split()
                assert any(
                    line.split()[-len(words) :] == words
                    or " ".join(cells) in " ".join(line.split())
                    for line in lines
                ), (table.title, row)
                compared += len(cells)
    assert compared > 100
    for line in found["cautions"]:
        assert line.split()[0] in " ".join(lines)


def test_escape_codes_of_a_report_do_not_reach_the_terminal(tmp_path, capsys):
    text = "Seen \x1b[2J twice [bold]here[/bold]."
    held = [(record(str(k), findings=text), []) for k in range(2)]
    audit([write(tmp_path / "toy", held)], lengths=(8,), batch_sizes=(2,))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[bold]here[/bold]" in printed


def many(folder: Path, seed: int) -> str:
    """40 train, 10 val and 3 test records of text, in an order of its own."""
    splits = ["train"] * 40 + ["val"] * 10 + ["test"] * 3
    held = [(record(str(k), s, caption=f"Caption number {k} of {s}."), []) for k, s in
            enumerate(splits)]  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(held))
    return write(folder, [held[k] for k in order], label_names=[])


def test_samples_are_24_over_all_splits_whatever_the_order(tmp_path):
    chosen = []
    for seed in (1, 2):
        held = Holdings(many(tmp_path / str(seed), seed))
        ids = held.column("id")
        rows = cards.choose(held)
        chosen.append([ids[row] for row in rows])
        per_split = [sum(row in held.splits[s] for row in rows) for s in ("train", "val", "test")]
        assert per_split == [14, 7, 3]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 24


def test_corpus_of_text_without_labels_is_audited(tmp_path):
    folder = many(tmp_path / "toy", 1)
    audit([folder], out=str(tmp_path / "out"))
    numbers = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    found = numbers["corpora"]["toy"]
    assert found["composed_of"] == ["caption"]
    assert found["repeats"]["images"] == {"images": 0}
    assert found["counts"]["all"]["records_without_image"] == 53
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "audit.html", "audit.json", "lengths-1.png",
    ]  # fmt: skip
    assert len(Page(tmp_path / "out" / "audit.html").cards) == 24


def test_boxes_are_drawn_where_they_are():
    flat = np.full((200, 100), 60, np.uint8)
    drawn = images.decode(cards.draw(flat, [Box((25.0, 50.0, 75.0, 150.0), "x")], []))
    assert drawn.shape == (256, 128)
    changed = np.argwhere(np.abs(drawn.astype(int) - 60) > 25)
    assert np.abs(changed.min(axis=0) - [64, 32]).max() <= 3
    assert np.abs(changed.max(axis=0) - [192, 96]).max() <= 3
    assert abs(int(drawn[128, 64]) - 60) < 5
    mask = np.zeros((200, 100), bool)
    mask[50:150, 25:75] = True
    assert (images.decode(cards.draw(flat, [], [mask])) > 110).sum() > 200
    dark = np.full((64, 64), 1000, np.uint16)
    dark[:, 32:] = 4000
    assert images.decode(cards.draw(dark, [], []))[128, 200] > 240


def test_overlap_with_a_corpus_to_evaluate_on_is_told(tmp_path, capsys):
    training = tiny(tmp_path / "toy")
    other = write(
        tmp_path / "other",
        [
            (record("1", "test", patient="p", findings="Another text."), [stored("x", picture(1))]),
            (record("x", "test", findings="Nothing known."), [stored("y", picture(9))]),
        ],
    )
    waivers = dict.fromkeys(("patient", "study", "leakage_unit", "image"), (0.5, "a follow-up"))
    told = r'patient: 1 of 2 records.*--waive="patient 0\.5 WHY; study 0\.5 WHY'
    with pytest.raises(LeakError, match=told) as caught:
        audit([training], against=[other], out=str(tmp_path / "none"))
    assert str(caught.value).startswith(f"{other} against training on {training}: ")
    assert (tmp_path / "none" / "audit.html").exists()
    audit([training], against=[other], out=str(tmp_path / "out"), waivers=waivers)
    numbers = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    found = {one["kind"]: one for one in numbers["corpora"]["toy"]["against"][other]["overlaps"]}
    assert (found["patient"]["records"], found["patient"]["of"]) == (1, 2)
    assert found["image"]["examples"] == ["toy:1"]
    assert found["image"]["waived"] == "a follow-up"
    assert "study" in found
    assert "that are also in the train split" in " ".join(capsys.readouterr().out.split())


def test_two_corpora_of_one_name_both_appear(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folders = [tiny(tmp_path / "a" / "toy"), many(tmp_path / "b" / "toy", 1)]
    audit(folders, out=str(tmp_path / "out"))
    numbers = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert [found["counts"]["all"]["records"] for found in numbers["corpora"].values()] == [6, 53]
    assert len(Page(tmp_path / "out" / "audit.html").cards) == 6 + 24


def test_wrong_requests_are_refused(tmp_path):
    folder = tiny(tmp_path / "toy")
    for options, message in (
        ({"out": str(tmp_path / "toy" / "report")}, "is in the prepared corpus"),
        ({"out": folder}, "is in the prepared corpus"),
        ({"lengths": (2,)}, "lengths .2.; expected one or more of at least 3"),
        ({"batch_sizes": ()}, "batch sizes .*; expected one or more of at least 2"),
        ({"sections": ("caption",)}, "no section 'caption'; choices: findings, impression"),
        ({"tokenizer": str(tmp_path / "none")}, "tokenizer file"),
        ({"against": [str(tmp_path)]}, "holds no prepared corpus"),
    ):
        with pytest.raises(InputError, match=message):
            audit([folder], **options)
    with pytest.raises(InputError, match="no folder to audit"):
        audit([])
    with pytest.raises(InputError, match="holds no record"):
        Holdings(write(tmp_path / "empty", []))


def test_nothing_notable_is_said_too(tmp_path):
    held = []
    for number, split in enumerate(("train", "val", "test")):
        one = record(str(number), split, findings=f"Text {number} only.", redistributable=True)
        held.append((one, [stored(str(number), picture(10 + number))]))
    folder = write(tmp_path / "toy", held, rejects={})
    audit([folder], out=str(tmp_path / "out"))
    numbers = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert numbers["corpora"]["toy"]["cautions"] == ["Nothing stands out."]
    assert cautions.list_cautions(numbers["corpora"]["toy"]) == ["Nothing stands out."]
