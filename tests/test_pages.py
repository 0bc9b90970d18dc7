"""Pages: what they hold, how large they become, and how they look in a browser."""

import dataclasses
import itertools
import re
import tomllib

import numpy as np
import pytest
from PIL import Image

from benchmarks import screenshots
from mmrl.evaluators import stored
from mmrl.evaluators.base import Figure, Item, Neighbours
from mmrl.reporting import comparison, comparison_page, page, report, write
from mmrl.types import InputError
from tests.browser import DESK, PHONE, is_sound, opened, readable
from tests.conftest import ROOT
from tests.test_comparison import answers, measured, save
from tests.test_figures import Page, retrieval_results, structure_results

HOSTILE = "<script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"
LOOKS = list(itertools.product((PHONE, DESK), (False, True)))


def square(value):
    return np.full((64, 48, 1), value, np.uint8)


def neighbours(text=HOSTILE):
    found = [Item("b", text=text * 3, score=0.5, matches=True), Item("c", text="Clear.", score=0.1)]
    images = [Item("b", image=square(9), score=0.5), Item("c", image=square(200), score=-0.1)]
    return [
        Neighbours("one", "Reports", "Caption", [(Item("a", image=square(90)), found)]),
        Neighbours("two", "Images", "Caption", [(Item("a", text=text), images)]),
    ]


def drawn(path):
    Image.effect_noise((1350, 600), 90).save(path, "PNG")


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """A summary page with every kind of part, and text from hostile data."""
    folder = tmp_path_factory.mktemp("summary")
    made = [Figure("noise", HOSTILE, HOSTILE, drawn), Figure("none", "None", HOSTILE)]
    value = retrieval_results()["values"]["image_to_text/R@1"]
    report.write_report(
        folder / "report.html",
        title=HOSTILE,
        summary=[("retrieval/a_very_long_name_of_a_measure/R@1", value, HOSTILE)],
        results={"retrieval": retrieval_results(), "structure": structure_results()},
        pictures=write._draw([*made, *neighbours()], folder / "figures"),
        config={"a": {HOSTILE: "x" * 500}},
        changed={HOSTILE: (None, "y" * 300)},
        provenance={"sha256": "e" * 64, HOSTILE: HOSTILE},
        left_out={"grounding": HOSTILE},
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The page of a comparison of four encoders, one with a hostile name."""
    folder = tmp_path_factory.mktemp("compared")
    given = {}
    for place, name in enumerate(("ours", "paper", "clip", HOSTILE.replace("/", ""))):
        config = {"batch_size": 64, "seed": place, "towers": {"image": {"name": "vit"}}}
        own = save(folder / str(place), measured(answers(0.9 - place / 10)), config=config)
        given[name] = stored.read(own)
    table = comparison.compare(given, measures=["toy/accuracy", "toy/median_rank"])
    return comparison_page.write(folder, table, given)


def test_the_checks_find_what_they_look_for(chromium, tmp_path):
    """A page that breaks every promise, so that the tests of other pages can fail."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='color:#777;background:#888'><div style='width:2000px'>wide</div>"
        "<img src='http://example.invalid/x.png'><script>undefined_function()</script>"
    )
    with opened(chromium, bad) as visit:
        assert visit.outside == ["http://example.invalid/x.png"]
        assert any("undefined_function" in error for error in visit.errors)
        assert visit.overflow() > 1500 and readable(visit) < 1.5
        with pytest.raises(AssertionError):
            is_sound(visit)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(("size", "dark"), LOOKS)
@pytest.mark.parametrize("which", ["summary", "compared"])
def test_pages_are_sound_on_phones_and_desks_by_day_and_night(which, size, dark, chromium, request):
    with opened(chromium, request.getfixturevalue(which), size=size, dark=dark) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        is_sound(visit)
        assert readable(visit) > 7
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") is not dark
        assert visit.page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")


def test_pages_need_no_scripts_and_escape_all_text(summary, compared):
    for path in (summary, compared):
        text = path.read_text(encoding="utf-8")
        parsed = Page(text)
        assert "script" not in parsed.tags and "<img src=http" not in text
        assert "<script>alert(1)<" in parsed.text
        assert all(a.startswith(("data:image/", "#")) for a in parsed.addresses)
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        assert f'content="{policy}"' in text


def test_every_template_is_part_of_the_package():
    package = ROOT / "mmrl" / "reporting"
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = stated["tool"]["setuptools"]["package-data"]["mmrl.reporting"]
    shipped = {file for pattern in patterns for file in package.glob(pattern) if file.is_file()}
    assert shipped == {f for f in (package / "templates").rglob("*") if f.is_file()} != set()


def test_links_to_sections_lead_somewhere(summary):
    text = summary.read_text(encoding="utf-8")
    links, ids = (set(re.findall(p, text)) for p in (r'href="#([^"]+)"', r'<section id="([^"]+)"'))
    assert links == ids and len(ids) >= 8


def test_neighbours_show_pictures_texts_and_what_belongs_together(summary):
    text = summary.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 3
    assert text.count('class="match"') == 1 and text.count('class="other"') == 3
    assert "cosine 0.50, its own" in text and "cosine -0.10" in text
    assert "[...]" not in text
    long = neighbours("word " * 500)[1]
    shown = write._gallery(long, page.Pictures()).queries[0].item
    assert len(shown.text) < 420 and shown.text.endswith(" [...]")


def test_a_page_holds_a_bounded_number_of_bytes_and_names_what_it_left_out(tmp_path):
    drawn(tmp_path / "noise.png")
    size = len(page.embedded((tmp_path / "noise.png").read_bytes(), "png"))
    pictures = page.Pictures(int(2.5 * size))
    parts = [pictures.part(f"P{n}", tmp_path / "noise.png", "Caption.") for n in range(4)]
    assert [isinstance(one[0], page.Picture) for one in parts] == [True, True, False, False]
    assert "noise.png is not embedded" in parts[2][1].text and "Caption." in parts[2][1].text
    full = page.Pictures(10)
    assert write._gallery(neighbours()[0], full).queries[0].item.data == ""
    rows = page.table(("n",), [[n] for n in range(page.MOST_ROWS + 5)])
    assert len(rows[0].rows) == page.MOST_ROWS and rows[1].text.startswith("5 more rows")
    assert page.table(("n",), []) == []
    long = page.Code({"a": "b" * 2 * page.MOST_TEXT})
    assert len(long.text) < page.MOST_TEXT + 100 and "more characters]" in long.text


def test_a_comparison_tells_what_differs_and_what_is_best(compared):
    parsed = Page(compared.read_text(encoding="utf-8"))
    told = parsed.text
    assert "toy/accuracy" in told and "images permuted" in told and "chance" in told
    assert "Encoder minus ours" in told and "Bold: better on the measure" in told
    section = told[told.index("How the configurations differ", 200) :]
    assert "seed" in section and "batch_size" not in section[: section.index("Facts")]
    text = compared.read_text(encoding="utf-8")
    assert text.count('class="swatch"') == 7 and "<b>" in text  # four encoders, three differences
    assert (compared.parent / "figures" / "differences.png").exists()


def test_one_encoder_has_no_differences_and_unstored_configs_are_named(tmp_path):
    given = {"ours": stored.read(save(tmp_path / "ours", measured(answers(0.9))))}
    table = comparison.compare(given)
    text = comparison_page.write(tmp_path, table, given).read_text(encoding="utf-8")
    assert "No config is stored of: ours." in text and "Encoder minus" not in text
    assert not (tmp_path / "figures" / "differences.png").exists()
    same = {"config": {"seed": 1}}
    given = {
        name: stored.read(save(tmp_path / name, measured(answers(0.9)), **same)) for name in "ab"
    }
    text = comparison_page.write(tmp_path, comparison.compare(given), given).read_text("utf-8")
    assert "The configurations of the runs are the same." in text


def test_screenshots_are_small_and_show_the_heading(chromium, summary, compared, tmp_path):
    shots = {shot.name: shot for shot in screenshots.shots(summary.parent, compared.parent)}
    assert len(shots) == 4
    for name in ("report-phone", "comparison"):
        with Image.open(screenshots.take(chromium, shots[name], tmp_path)) as image:
            assert image.size == shots[name].size
            assert (tmp_path / f"{name}.png").stat().st_size < screenshots.MOST
    with pytest.raises(InputError, match="has no heading 'Map of image"):
        screenshots.take(chromium, shots["report-map"], tmp_path)
    absent = dataclasses.replace(shots["comparison"], page=tmp_path / "none.html")
    with pytest.raises(InputError, match=r"none\.html is missing"):
        screenshots.take(chromium, absent, tmp_path)
