"""The audit of prepared corpora: numbers by hand, the page, and that all three outputs agree."""

import csv
import hashlib
import html.parser
import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from array_record.python import array_record_module

from mmrl.data import duplicates, images, reports, shards
from mmrl.data.leaks import LeakError
from mmrl.data.tokenizer import Tokenizer
from mmrl.preparation import audit_tables, cards, findings, repeats, survey, wording
from mmrl.preparation.audit import audit
from mmrl.preparation.holdings import Holdings
from mmrl.types import Box, InputError, Record

NAMES = ("Mass", "Effusion")


def picture(seed: int, height: int = 96, width: int = 80) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 50 * smooth, 0, 255).astype(np.uint8)


def stored(key: str, pixels: np.ndarray, view: str = "PA") -> shards.StoredImage:
    _, data = cv2.imencode(".png", pixels)
    digest, value = shards.pixel_sha256(pixels), duplicates.perceptual_hash(pixels)
    height, width = pixels.shape
    return shards.StoredImage(
        key,
        data.tobytes(),
        height,
        width,
        2 * height,
        2 * width,
        view,
        "label",
        None,
        digest,
        value,
    )


def record(name: str, split: str = "train", patient: str = "", **others: Any) -> Record:
    """Sections are given as `findings`, `impression` and so on."""
    known = ("findings", "impression", "caption")
    sections = {key: others.pop(key) for key in known if key in others}
    patient = patient or f"patient {name}"
    study = others.pop("study", f"study {name}")
    return Record(f"toy:{name}", "toy", patient, study, patient, split, (), sections, **others)


def write(
    folder: Path, held: list[tuple[Record, list[shards.StoredImage]]], **manifest: Any
) -> str:
    """A prepared corpus of one shard."""
    folder.mkdir()
    writer = array_record_module.ArrayRecordWriter(str(folder / "a"), shards.WRITER_OPTIONS)
    rows = []
    for position, (one, pictures) in enumerate(held):
        writer.write(shards.pack_payload(one, pictures))
        rows.append(shards.index_row(one, pictures) | {"shard": "a", "position": position})
    writer.close()
    sections = list(dict.fromkeys(name for one, _ in held for name in one.sections))
    pq.write_table(shards.index_table(rows, sections), folder / shards.INDEX)
    content = {
        "schema_version": 1,
        "facts": {"title": "A toy corpus"},
        "label_names": list(NAMES),
        "rejects": {"unreadable_image": 2, "bad_row": 1},
        "files": {name: {"bytes": (folder / name).stat().st_size} for name in ("a", shards.INDEX)},
    }
    (folder / shards.MANIFEST).write_text(json.dumps(content | manifest), encoding="utf-8")
    return str(folder)


def tiny(folder: Path) -> str:
    """Six records whose numbers the tests give by hand."""
    first, second = picture(1), picture(2)
    smaller = cv2.resize(second, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    hostile = "A <script>alert(1)</script> mass & <b>more</b>."
    box = Box((20.0, 30.0, 100.0, 90.0), "Mass")
    return write(
        folder,
        [
            (
                record("1", patient="p", findings="No effusion.", impression="Normal XXXX chest.",
                       labels=(0, 0), license="CC0-1.0", redistributable=True),
                [stored("1", first)],
            ),
            (
                record("2", findings="no  effusion", impression="Normal.", labels=(0, -1)),
                [stored("2", first)],
            ),
            (record("3", study="study 2", findings="", impression="normal", labels=(-2, -2)), []),
            (
                record("4", "val", findings=hostile, labels=(1, -2), boxes=(box,)),
                [stored("4", second), stored("4b", picture(3), "UNKNOWN")],
            ),
            (
                record("5", "test", patient="p", findings="None", impression="", labels=(1, 1)),
                [stored("5", smaller)],
            ),
            (record("6", "test", findings="No effusion", impression="Normal. "), []),
        ],
    )  # fmt: skip


class Page(html.parser.HTMLParser):
    """Tags of a page, and text by article."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "article":
            self.cards.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "article" in self.open:
            self.cards[-1] += data


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Folder, its numbers, its page, and what stands in the folder before and after."""
    root = tmp_path_factory.mktemp("audit")
    folder = tiny(root / "toy")

    def digests() -> dict[str, str]:
        files = sorted(Path(folder).iterdir())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    audit([folder], lengths=(8, 300), batch_sizes=(2, 3), sections=())
    assert digests() == before
    out = root / "toy-audit"
    numbers = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    return folder, numbers["corpora"]["toy"], Page(out / "audit.html")


# --- numbers -------------------------------------------------------------------------------------


def test_counts_by_hand(audited):
    _, found, _ = audited
    train, test, whole = (found["counts"][split] for split in ("train", "test", "all"))
    assert train == {
        "records": 3, "patients": 3, "studies": 2, "groups": 3, "images": 2,
        "records_without_image": 1, "records_without_text": 0, "records_with_prior": 0,
        "group_known_share": 1.0,
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
    assert seen["views"] == {"PA": 4, "UNKNOWN": 1}
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
    told = found["findings"]
    assert "1 (50.0 %) records of test share patients with train." in told
    assert "1 pictures appear under several patients, pixel for pixel." in told
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
    made, _ = wording.tokenizer_for(held, "")
    texts = [text for text in held.composed if text]
    sizes = [int(made.encode(text, 500).mask.sum()) for text in texts]
    assert found["lengths"]["text"]["tokens"]["max"] == max(sizes)
    assert found["lengths"]["text"]["truncated"]["8"]["share"] == np.mean(np.array(sizes) > 8)
    assert found["lengths"]["text"]["truncated"]["300"]["share"] == 0


def test_token_counts_of_long_texts_and_a_tokenizer_file(tmp_path):
    made = Tokenizer.train(["a b c d e f g"], vocab_size=300)
    texts = ["a", "", "a b c d e f g " * 90, "b " * 40, *["c d"] * 600]
    expected = [int(made.encode(text, 2000).mask.sum()) for text in texts]
    assert wording.token_counts(made, texts).tolist() == expected
    assert max(expected) > 128
    made.save(tmp_path / "own.model")
    held = Holdings(tiny(tmp_path / "toy"))
    loaded, told = wording.tokenizer_for(held, str(tmp_path / "own.model"))
    assert loaded is not None
    assert told["sha256"] == made.sha256


def test_marks_of_all_corpora_are_found(tmp_path):
    texts = ["Dr. ___ on [**2010-1-1**] and [** Hospital 3 **].", "x-XXXX by <NAME>", "axx __init"]
    folder = write(tmp_path / "toy", [(record(str(k), caption=t), []) for k, t in enumerate(texts)])
    found = wording.deidentification(Holdings(folder))["caption"]
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


def test_groups_that_are_not_known_are_told(tmp_path):
    held = [
        (record("1", findings="A b c.", group_known=False), []),
        (record("2", findings="A b d."), []),
    ]
    found = survey.counts(Holdings(write(tmp_path / "toy", held)))
    assert found["all"]["group_known_share"] == 0.5


# --- the page, the terminal, the samples ---------------------------------------------------------


def test_page_is_closed_escaped_and_holds_every_record(audited):
    _, _, page = audited
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in page.tags if tag == "img")
    assert not {tag for tag, attrs in page.tags if "href" in attrs or "onclick" in attrs}
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
    for line in found["findings"]:
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
    waivers = dict.fromkeys(("patient", "study", "group", "image"), (0.5, "a follow-up"))
    told = r"patient: 1 of 2 records.*--waive=\(\('patient', 0\.5"
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
    assert "that the train split has seen" in " ".join(capsys.readouterr().out.split())


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
        ({"out": str(tmp_path / "toy" / "report")}, "lies in the prepared corpus"),
        ({"out": folder}, "lies in the prepared corpus"),
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
    assert numbers["corpora"]["toy"]["findings"] == ["Nothing stands out."]
    assert findings.notable(numbers["corpora"]["toy"]) == ["Nothing stands out."]


# --- real data -----------------------------------------------------------------------------------


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
