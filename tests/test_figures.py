"""Figures and the report page, on made-up data."""

import dataclasses
import html.parser
import warnings

import numpy as np
import pytest
from PIL import Image

from mmrl.evaluators.base import Estimate, Figure, Results
from mmrl.reporting import attention, bars, figures, page, report, write
from mmrl.reporting.attention import AttentionExample
from mmrl.types import InputError

GRID = (4, 4)


def picture(height=40, width=80):
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


def example(boxes=((4.0, 4.0, 8.0, 8.0),), weights=None, text="Clear lungs."):
    even = np.full(GRID, 1 / 16, np.float32)
    return AttentionExample(
        image=picture(16, 16),
        id="fake:0",
        text=text,
        words=[("effusion", even if weights is None else weights), ("left", even)],
        boxes=[("effusion", box) for box in boxes],
    )


# --- figures


def metrics_lines():
    lines = []
    for step in range(10, 201, 10):
        losses = {"loss": 5 / step, "b/loss": 3 / step, "a/loss": None}
        lines.append({"step": step, "kind": "train", "learning_rate": 1e-3, **losses})
        if step % 50 == 0:
            lines.append({"step": step, "kind": "eval", "b/loss": None})
    return lines


def recall_lines():
    names = [f"{d}/R@{k}" for d in DIRECTIONS for k in (1, 5)]
    ends = {f"{n}/{end}": v for n in names for end, v in (("low", 0.1), ("high", 0.3))}
    return [{"step": step, **dict.fromkeys(names, 0.2), **ends} for step in range(50, 201, 50)]


DIRECTIONS = ("image_to_text", "text_to_image")


def structure_results(kinds=("shuffle_all_words", "swap $5 and $6")):
    three = {
        "accuracy": 0.7,
        "accuracy_images_permuted": 0.5,
        "accuracy_text_only": 0.4,
        "grounded_gain": 0.2,
    }
    prefixes = {"some@1/": 1 / 6, **{f"some@1/kind/{kind}/": 0.5 for kind in kinds}}
    values = {
        f"{prefix}{name}": Estimate(value, value - 0.1, value + 0.1, 40, chance)
        for prefix, chance in prefixes.items()
        for name, value in three.items()
    }
    values["some@1/grounded_gain"] = Estimate(0.2, n=40)
    data = {"name": "fake/test", "sha256": "0"}
    results = Results("structure", values, 40, data, {"size": 16})
    return results.to_dict()


def retrieval_results():
    values = {f"{d}/R@{k}": Estimate(0.2, 0.1, 0.3, 40, 0.02) for d in DIRECTIONS for k in (1, 5)}
    data = {"name": "fake/test", "sha256": "0"}
    return Results("retrieval@1", values, 40, data, {"size": 16}, {"too <short>": 2}).to_dict()


DRAWN = {
    "loss": (lambda p: figures.loss_curves(metrics_lines(), p), (1350, 825)),
    "retrieval": (
        lambda p: figures.retrieval_over_time(recall_lines(), p, results=retrieval_results()),
        (1350, 600),
    ),
    "retrieval_bare": (lambda p: figures.retrieval_over_time(recall_lines(), p), (1350, 600)),
    "structure": (lambda p: bars.structure_per_kind(structure_results(), "some@1", p), (1350, 615)),
    "attention": (
        lambda p: attention.attention_grid([example(), example((), text="$5 \u6f22 " * 60)], p),
        (1215, None),
    ),
}


@pytest.mark.exhaustive
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


def test_a_sentence_as_label_of_a_map_is_wrapped(tmp_path):
    long = dataclasses.replace(example(), words=[("$5 long sentence " * 20, np.eye(4))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns when a title leaves no room for panels
        attention.attention_grid([long, example()], tmp_path / "long.png")
    with Image.open(tmp_path / "long.png") as image:
        assert image.size[0] == 1215


def test_figures_without_anything_to_draw_say_why(tmp_path):
    path = tmp_path / "none.png"
    with pytest.raises(InputError, match="no finite training loss in 1 lines"):
        figures.loss_curves([{"step": 1, "kind": "train", "loss": None}], path)
    with pytest.raises(InputError, match="no retrieval values in 0 lines"):
        figures.retrieval_over_time([], path)
    with pytest.raises(InputError, match="has no values of some@1, so there are no bars"):
        bars.structure_per_kind({"protocol": "structure", "values": {}}, "some@1", path)
    with pytest.raises(InputError, match="no examples"):
        attention.attention_grid([], path)
    assert not path.exists()


# --- report


class Page(html.parser.HTMLParser):
    """Collects tags, links and text; checks that tags are closed in order."""

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
        "summary": [("R@1", retrieval_results()["values"]["image_to_text/R@1"], 'the "best" <b>')],
        "results": {"retrieval": retrieval_results(), "structure": structure_results()},
        "pictures": [],
        "config": {"model": {"name": "</pre><img src=x onerror=alert(2)>"}, "lr": 1e-3},
        "changed": {"lr": (1e-4, 1e-3)},
        "provenance": {"step": 200, "packages": {"jax": "0.8"}, "pixel_mean": 0.49786},
    }
    report.write_report(path, **{**parts, **changes})
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_report_is_self_contained_and_escaped(tmp_path):
    figures.loss_curves(metrics_lines(), tmp_path / "loss.png")
    shown = page.Pictures().part("Losses", tmp_path / "loss.png", "A <caption>")
    text, parsed = written(tmp_path / "report.html", pictures=shown)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert parsed.tags.count("img") == 1
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in parsed.addresses)
    assert "url(" not in text and "@import" not in text and "http:" not in text
    for told in ("<script>alert(1)</script>", "</pre><img", 'the "best" <b>', "A <caption>"):
        assert told in parsed.text
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert {f.name for f in tmp_path.iterdir()} == {"loss.png", "report.html"}


def test_report_states_every_figure_with_what_it_rests_on(tmp_path):
    _, parsed = written(tmp_path / "report.html")
    for told in (
        "0.200", "[0.100, 0.300]", "0.020", "40", "retrieval@1", "too <short>", "0.49786",
        "packages.jax", "fake/test", "Breakdown, 8 rows", "retrieval, structure",
    ):  # fmt: skip
        assert told in parsed.text, told


def test_report_names_missing_figures_and_empty_results(tmp_path):
    data = {"name": "fake/test", "sha256": "0"}
    nothing = Results("pointing@1", {}, 0, data, {}, {"no boxes": 3}).to_dict()
    pictures = page.Pictures()
    parts = pictures.part("Attention", None, "no local features")
    parts += pictures.part("Lost", tmp_path / "x.png", "Caption")
    _, parsed = written(
        tmp_path / "report.html",
        pictures=parts,
        results={"pointing": nothing},
    )
    assert "Missing figure: no local features" in parsed.text
    assert "Missing figure: no file x.png. Caption" in parsed.text
    assert "No values: there was nothing to evaluate." in parsed.text and "no boxes" in parsed.text
    assert "img" not in parsed.tags


def test_evaluators_of_one_kind_do_not_overwrite_their_figures():
    def made(*names):
        return [Figure(name, name.title(), "") for name in names]

    found = write._distinct({"sides": made("maps", "loss"), "exchanged": made("maps")})
    assert [one.name for one in found] == ["maps_sides", "loss", "maps_exchanged"]
    assert [one.title for one in found] == ["Maps (sides)", "Loss", "Maps (exchanged)"]
