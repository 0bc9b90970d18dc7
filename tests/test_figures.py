"""Attention examples, pointing, figures and the report page, on made-up data."""

import html.parser
import json

import numpy as np
import pytest
from PIL import Image

from mmrl import figures, report
from mmrl.attention import AttentionExample, attend, pointing, select_examples
from mmrl.data.images import Preprocess
from mmrl.data.tokenizer import Tokenizer
from mmrl.evaluators.base import Estimate, Results
from mmrl.evaluators.statistics import Subset
from mmrl.objectives.local_contrastive import word_region_attention
from mmrl.types import Box, ImageRef, InputError, Record

GRID = (4, 4)
LABELS = ("pleural_effusion", "nodule", "pneumothorax")
SENTENCES = ("Small left pleural effusion.", "Right upper lobe nodules.", "Tiny LEFT pneumothorax.")


def picture(height=40, width=80):
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


class FakeData:
    """Studies with one boxed finding each; the box fills one cell of the grid."""

    name, sha256, preprocessing = "fake/test", "0" * 64, {"size": 16}

    def __init__(self, count, *, boxes=True, sentence=1, length=64, patients=None):
        self.boxes, self.sentence, self.length = boxes, sentence, length
        self.ids = [f"fake:{i}" for i in range(count)]
        self.patients = patients or [f"p{i}" for i in range(count)]
        self.groups = np.arange(count)
        ends = ("The heart is normal.", "No fracture is seen there.")
        self.sentences = [(ends[0], SENTENCES[i % 3], ends[1]) for i in range(count)]
        self.texts = [" ".join(s) for s in self.sentences]
        self.tokenizer = Tokenizer.train(self.texts, vocab_size=330)
        self.preprocess = Preprocess(16)

    def __len__(self):
        return len(self.ids)

    def cell(self, index):
        """Row and column in the grid; rows 0 and 3 are padding of the wide picture."""
        return 1 + index // 4 % 2, index % 4

    def record(self, index):
        row, column = self.cell(index)
        x, y = 20.0 * column, 20.0 * (row - 1)
        box = Box((x, y, x + 20, y + 20), LABELS[index % 3], self.sentence)
        return Record(
            id=self.ids[index],
            source="fake",
            patient_id=self.patients[index],
            study_id="",
            group_key="",
            split="test",
            images=(ImageRef("k", picture),),
            sections={},
            boxes=(box,) if self.boxes else (),
            sentences=tuple(("findings", s) for s in self.sentences[index]),
        )

    def tokenize(self, texts):
        tokens, mask, _ = self.tokenizer.encode_batch(texts, self.length)
        return tokens, mask

    def image(self, index):
        return self.preprocess(picture())[..., None]


class FakePredict:
    """Regions are one-hot; every word is the sum of the regions that `cells(id)` gives."""

    provides = ("image.regions", "text.words")

    def __init__(self, cells):
        self.cells = cells

    def images(self, state, data, *, local=False):
        assert local
        assert sum(count for _, count in data.image_batches(4)) == len(data)
        return {"image.regions": np.tile(np.eye(16, dtype=np.float32), (len(data), 1, 1))}

    def texts(self, state, data, texts, *, local=False):
        mask = data.tokenize(texts)[1]
        words = np.zeros((*mask.shape, *GRID), np.float32)
        for row, name in enumerate(data.ids):
            for cell in self.cells(name):
                words[(row, slice(None), *cell)] = 1
        return {"text.words": words.reshape(*mask.shape, 16), "text.word_mask": mask}


def plain_attention(words, word_mask, regions):
    scores = np.exp(words @ regions.T)
    return scores / scores.sum(axis=1, keepdims=True)


def run_attention(data, cells, count=12, words=plain_attention):
    chosen = select_examples(data, data.tokenizer.words, count=count)
    options = {"attention": words, "grid": GRID, "geometry": data.preprocess.geometry}
    return attend(FakePredict(cells), None, data, chosen, **options)


def example(boxes=((4.0, 4.0, 8.0, 8.0),), patient="p", weights=None, text="Clear lungs."):
    even = np.full(GRID, 1 / 16, np.float32)
    return AttentionExample(
        image=picture(16, 16),
        id="fake:0",
        patient=patient,
        text=text,
        words=[("effusion", even if weights is None else weights), ("left", even)],
        boxes=[("effusion", box) for box in boxes],
    )


# --- attention


def test_examples_name_the_finding_and_spread_over_findings_and_patients():
    data = FakeData(30, patients=[f"p{i // 5}" for i in range(30)])
    chosen = select_examples(data, data.tokenizer.words, count=6)
    assert chosen == select_examples(data, data.tokenizer.words, count=6)
    assert sorted(choice.label for choice in chosen) == sorted(LABELS * 2)
    assert len({data.patients[choice.index] for choice in chosen}) == 6
    words = {choice.label: [word for word, _ in choice.words] for choice in chosen}
    assert words == {
        "pleural_effusion": ["effusion", "left"],
        "nodule": ["nodules", "right"],
        "pneumothorax": ["pneumothorax", "left"],
    }
    for choice in chosen:
        tokens = data.tokenize([data.texts[choice.index]])[0][0]
        for word, positions in choice.words:
            assert data.tokenizer.decode(tokens[list(positions)]) == word
    # More than there are patients: the rest are other studies of the same patients.
    many = select_examples(data, data.tokenizer.words, count=40)
    assert sorted(choice.index for choice in many) == list(range(30))


def test_examples_without_sentence_take_the_words_of_the_label_only():
    data = FakeData(6, sentence=-1)
    chosen = select_examples(data, data.tokenizer.words, words_per_example=3)
    words = {choice.label: [word for word, _ in choice.words] for choice in chosen}
    assert words["nodule"] == ["nodules"] and words["pneumothorax"] == ["pneumothorax"]
    assert sorted(words["pleural_effusion"]) == ["effusion", "pleural"]


def test_examples_without_boxes_take_rare_words_and_truncated_sentences_do_not_count():
    data = FakeData(9, boxes=False)
    chosen = select_examples(data, data.tokenizer.words, count=4)
    assert len(chosen) == 4 and all(not c.boxes and len(c.words) == 2 for c in chosen)
    assert not {w for c in chosen for w, _ in c.words} & {"the", "normal", "heart"}
    cut = FakeData(9, length=8)
    assert all(not choice.boxes for choice in select_examples(cut, cut.tokenizer.words))
    assert select_examples(FakeData(9), data.tokenizer.words, scan=0) == []
    assert run_attention(data, lambda name: [(0, 0)], count=0) == []


def test_attention_is_averaged_over_the_tokens_of_a_word_and_boxes_are_mapped():
    data = FakeData(3)

    def by_position(words, word_mask, regions):
        return np.arange(words.shape[0])[:, None] * np.ones(16)

    shown = run_attention(data, lambda name: [], words=by_position)[0]
    choice = select_examples(data, data.tokenizer.words)[0]
    for (word, weights), (chosen_word, positions) in zip(shown.words, choice.words, strict=True):
        assert word == chosen_word and weights.shape == GRID and weights.dtype == np.float32
        np.testing.assert_allclose(weights, np.mean(positions))
    row, column = data.cell(choice.index)
    assert shown.boxes == [
        (choice.label, (4.0 * column, 4.0 * row, 4.0 * column + 4, 4.0 * row + 4))
    ]
    assert shown.image.shape == (16, 16) and shown.text == data.texts[choice.index]


def test_attend_refuses_features_that_do_not_fit():
    data = FakeData(3)
    chosen = select_examples(data, data.tokenizer.words)
    options = {"attention": plain_attention, "geometry": data.preprocess.geometry}
    with pytest.raises(ValueError, match=r"16 regions, the grid is \(3, 4\)"):
        attend(FakePredict(lambda n: []), None, data, chosen, grid=(3, 4), **options)
    predict = FakePredict(lambda n: [])
    texts = predict.texts
    predict.texts = lambda *args, **o: {k: v[:, 1:] for k, v in texts(*args, **o).items()}
    with pytest.raises(ValueError, match="63 places for 64 tokens"):
        attend(predict, None, data, chosen, grid=GRID, **options)


def test_subset_keeps_what_belongs_together():
    data = FakeData(7)
    subset = Subset(data, [5, 2])
    assert subset.ids == ["fake:5", "fake:2"] and subset.groups.tolist() == [5, 2]
    assert subset.record(1).id == "fake:2" and subset.texts[0] == data.texts[5]
    assert subset.sha256 != Subset(data, [2, 5]).sha256
    ((batch, count),) = subset.image_batches(3)
    assert batch.shape == (3, 16, 16, 1) and count == 2 and not batch[2].any()


def test_pointing_of_true_blind_and_undecided_attention():
    data = FakeData(12)

    def at_box(name):
        return [data.cell(int(name.removeprefix("fake:")))]

    true = pointing(run_attention(data, at_box), data)
    assert true.protocol == "pointing@1" and true.n == 12 and true.details["words"] == 24
    assert true.values["accuracy"].value == 1
    assert true.values["accuracy"].chance == pytest.approx(1 / 16)
    assert true.values["grounded_gain"].low > 0.5
    same = pointing(run_attention(data, lambda name: [(1, 1)]), data)
    assert same.values["accuracy"].value == same.values["accuracy_boxes_permuted"].value == 2 / 12
    assert same.values["grounded_gain"].value == pytest.approx(0)
    # Attention that is even, or shared between the box and another place, is no hit.
    assert pointing(run_attention(data, lambda n: []), data).values["accuracy"].value == 0
    torn = pointing(run_attention(data, lambda name: [*at_box(name), (3, 3)]), data)
    assert torn.values["accuracy"].value == 0
    for shown in run_attention(data, at_box, words=word_region_attention):
        np.testing.assert_allclose([w.sum() for _, w in shown.words], 1, rtol=1e-6)
    json.dumps(true.to_dict(), allow_nan=False)


def test_pointing_excludes_and_counts():
    data = FakeData(3)
    results = pointing([example(()), example(((0.0, 0, 1, 1),)), example()], data)
    assert results.n == 1
    assert results.excluded == {"no boxes": 1, "no region centre inside the boxes": 1}
    assert results.values["accuracy"].low is None  # one patient
    empty = pointing([example(())], data)
    assert empty.n == 0 and not empty.values and empty.excluded == {"no boxes": 1}
    assert pointing([], data).n == 0


# --- figures


def metrics_lines():
    lines = []
    for step in range(10, 201, 10):
        losses = {"loss": 5 / step, "b/loss": 3 / step, "a/loss": None}
        lines.append({"step": step, "kind": "train", "learning_rate": 1e-3, **losses})
        if step % 50 == 0:
            names = [f"retrieval/{d}/R@{k}" for d in DIRECTIONS for k in (1, 5)]
            ends = {f"{n}/{end}": v for n in names for end, v in (("low", 0.1), ("high", 0.3))}
            lines.append({"step": step, "kind": "eval", **dict.fromkeys(names, 0.2), **ends})
    return lines


DIRECTIONS = ("image_to_text", "text_to_image")


def structure_results(kinds=("shuffle_all_words", "swap $5 and $6")):
    three = {"accuracy": 0.7, "accuracy_images_permuted": 0.5, "grounded_gain": 0.2}
    prefixes = {"": 1 / 6, **{f"kind/{kind}/": 0.5 for kind in kinds}}
    values = {
        f"{prefix}{name}": Estimate(value, value - 0.1, value + 0.1, 40, chance)
        for prefix, chance in prefixes.items()
        for name, value in three.items()
    }
    values["grounded_gain"] = Estimate(0.2, n=40)
    results = Results(
        "structure/choice-6way@1", values, 40, {"name": "fake/test", "sha256": "0"}, {"size": 16}
    )
    return results.to_dict()


def retrieval_results():
    values = {f"{d}/R@{k}": Estimate(0.2, 0.1, 0.3, 40, 0.02) for d in DIRECTIONS for k in (1, 5)}
    data = {"name": "fake/test", "sha256": "0"}
    return Results("retrieval@1", values, 40, data, {"size": 16}, {"too <short>": 2}).to_dict()


DRAWN = {
    "loss": (lambda p: figures.loss_curves(metrics_lines(), p), (1350, 825)),
    "retrieval": (
        lambda p: figures.retrieval_over_time(metrics_lines(), p, results=retrieval_results()),
        (1350, 600),
    ),
    "retrieval_bare": (lambda p: figures.retrieval_over_time(metrics_lines(), p), (1350, 600)),
    "structure": (lambda p: figures.structure_per_kind(structure_results(), p), (1350, 549)),
    "attention": (
        lambda p: figures.attention_grid([example(), example((), text="$5 \u6f22 " * 60)], p),
        (1215, None),
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_have_their_size_and_show_something(name, tmp_path):
    draw, (width, height) = DRAWN[name]
    path, again = tmp_path / "first.png", tmp_path / "second.png"
    draw(path)
    if name in ("structure", "retrieval"):
        draw(again)
        assert path.read_bytes() == again.read_bytes()
    image = Image.open(path)
    assert image.size == (width, height or image.height)
    assert set(image.info) <= {"dpi"}
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert 0.5 < (pixels > 250).all(axis=1).mean() < 0.99 or name == "attention"
    assert len(np.unique(pixels, axis=0)) > 50


def test_figures_without_anything_to_draw_say_why(tmp_path):
    path = tmp_path / "none.png"
    with pytest.raises(InputError, match="no finite training loss in 1 lines"):
        figures.loss_curves([{"step": 1, "kind": "train", "loss": None}], path)
    with pytest.raises(InputError, match="no retrieval values in 0 lines"):
        figures.retrieval_over_time([], path)
    with pytest.raises(InputError, match="holds no accuracy"):
        figures.structure_per_kind({"protocol": "structure", "values": {}}, path)
    with pytest.raises(InputError, match="no examples"):
        figures.attention_grid([], path)
    assert not path.exists()


# --- report


class Page(html.parser.HTMLParser):
    """Collects tags, addresses and text; checks that tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def written(path, **changes):
    parts = {
        "title": "Run <script>alert(1)</script> & more",
        "summary": [("R@1", 0.25, 'the "best" <b>')],
        "results": {"retrieval": retrieval_results(), "structure": structure_results()},
        "figures": [],
        "config": {"model": {"name": "</pre><img src=x onerror=alert(2)>"}, "lr": 1e-3},
        "provenance": {"step": 200, "packages": {"jax": "0.8"}, "pixel_mean": 0.49786},
    }
    report.write_report(path, **{**parts, **changes})
    page = path.read_text(encoding="utf-8")
    return page, Page(page)


def test_report_is_self_contained_and_escaped(tmp_path):
    figures.loss_curves(metrics_lines(), tmp_path / "loss.png")
    shown = ("Losses", tmp_path / "loss.png", "A <caption>")
    page, parsed = written(tmp_path / "report.html", figures=[shown])
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert parsed.tags.count("img") == 1
    assert all(a.startswith("data:image/png;base64,") for a in parsed.addresses)
    assert "url(" not in page and "@import" not in page and "http:" not in page
    for told in ("<script>alert(1)</script>", "</pre><img", 'the "best" <b>', "A <caption>"):
        assert told in parsed.text
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert {f.name for f in tmp_path.iterdir()} == {"loss.png", "report.html"}


def test_report_states_every_figure_with_what_it_rests_on(tmp_path):
    _, parsed = written(tmp_path / "report.html")
    for told in (
        "0.200", "[0.100, 0.300]", "0.020", "40", "retrieval@1", "too <short>", "0.49786",
        "packages.jax", "fake/test", "Breakdown, 6 rows", "retrieval, structure",
    ):  # fmt: skip
        assert told in parsed.text, told


def test_report_names_missing_figures_and_empty_results(tmp_path):
    data = {"name": "fake/test", "sha256": "0"}
    nothing = Results("pointing@1", {}, 0, data, {}, {"no boxes": 3}).to_dict()
    _, parsed = written(
        tmp_path / "report.html",
        figures=[("Attention", None, "no local features"), ("Lost", tmp_path / "x.png", "Caption")],
        results={"pointing": nothing},
    )
    assert "Missing figure: no local features" in parsed.text
    assert "Missing figure: no file x.png. Caption" in parsed.text
    assert "No values: nothing could be evaluated." in parsed.text and "no boxes" in parsed.text
    assert "img" not in parsed.tags
