"""Further texts of a corpus: from a table or from templates, and who wrote them."""

import json
import pickle

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data.reading import shards
from mmrl.data.sources.mixture import Mixture
from mmrl.data.sources.prepared import Prepared
from mmrl.data.sources.side_texts import SideTexts
from mmrl.preparation import audit
from mmrl.preparation.job import Settings, prepare
from mmrl.preparation.storage import Storage
from mmrl.training import run
from mmrl.types import InputError, Provenance
from tests import toys

PHANTOM = {"source": "phantom", "length": 40, "render_size": 32, "lateral": True}
TEXTS = [
    {"id": "phantom:0-0", "caption": "Clear lungs.", "by": "model-7b", "date": "2026-01-02"},
    {"id": "0-1", "caption": "A tube.", "by": "a reader", "synthetic": "no"},
    {"id": "0-2", "caption": " ", "by": "model-7b"},
    {"id": "phantom:0-77", "caption": "Of no record.", "by": "model-7b"},
]


def written(folder, rows=TEXTS, name="texts.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def people(folder):
    """A table of patients with attributes, labels and no report."""
    path = folder / "people.csv"
    rows = ["id,age,density,mass,calcification"]
    rows += [f"p{n},{50 + n if n % 3 else ''},{'ABCD'[n % 4]},{n % 2},1" for n in range(30)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return {
        "source": "table",
        "path": str(path),
        "image_column": "",
        "report_columns": (),
        "id_column": "id",
        "attribute_columns": ("age", "density"),
        "label_columns": ("mass", "calcification"),
        "fractions": (1.0, 0.0, 0.0),
    }


def by_id(source):
    return {record.id.partition(":")[2]: record for record in source}


def whole(folder, rows=TEXTS, **options):
    corpus = {**PHANTOM, "fractions": (1.0, 0.0, 0.0)}
    return SideTexts(split="train", corpus=corpus, path=written(folder, rows), **options)


def test_texts_of_a_table_are_sections_with_their_provenance(tmp_path):
    source = whole(tmp_path)
    plain = by_id(Mixture(split="train", parts=[{**PHANTOM, "fractions": (1.0, 0.0, 0.0)}]))
    found = by_id(source)
    assert found["0-0"].sections == {**plain["0-0"].sections, "caption": "Clear lungs."}
    assert found["0-0"].provenance == {"caption": Provenance("model-7b", True, "2026-01-02")}
    assert found["0-1"].provenance == {"caption": Provenance("a reader", False)}
    for name in ("0-2", "0-3"):  # a blank text, and none
        assert found[name].sections == plain[name].sections and found[name].provenance is None
    assert len(source) == 40 and source[0].id == next(iter(source)).id
    np.testing.assert_array_equal(source.image(3, 1), source[3].images[1].load())
    assert by_id(pickle.loads(pickle.dumps(source)))["0-1"].provenance == found["0-1"].provenance
    expected = (
        "2 of 40 records have the further text 'caption', by model-7b, 2026-01-02 (1), a read"
    )
    assert source.warnings[0].startswith(expected)


def test_a_section_of_the_corpus_is_kept(tmp_path):
    rows = [{"id": "0-0", "words": "Nothing.", "who": "model-7b"}]
    source = whole(tmp_path, rows, sections={"findings": "words"}, columns={"by": "who"})
    record = by_id(source)["0-0"]
    assert record.sections["findings"] != "Nothing." and record.provenance is None
    assert source.warnings == ["1 records keep a section of their own that the side texts have"]


def test_sections_of_the_corpus_are_left_out(tmp_path):
    found = by_id(whole(tmp_path, leave_out=("findings", "impression"))).values()
    assert set().union(*(one.sections for one in found)) == {"indication", "caption"}
    inner = {"source": "side_texts", "corpus": PHANTOM, "path": written(tmp_path)}
    given = {"corpus": inner, "templates": {"label": "{labels}."}, "leave_out": "caption"}
    for one in SideTexts(split="train", **given):
        assert set(one.provenance or {}) == {"label"} & set(one.sections)


def test_templates_state_what_is_known_of_a_record(tmp_path):
    sentences = ("{age} year old woman.", ["Density {density}.", "{density} tissue."], "{labels}.")
    source = SideTexts(split="train", corpus=people(tmp_path), templates={"report": sentences})
    found = {name: one.sections["report"] for name, one in by_id(source).items()}
    assert len(found) == 30
    for n in range(30):
        age = f"{50 + n} year old woman. " if n % 3 else ""
        density = "ABCD"[n % 4]
        labels = "mass, calcification." if n % 2 else "calcification."
        wordings = (f"Density {density}.", f"{density} tissue.")
        assert found[f"p{n}"] in [f"{age}{wording} {labels}" for wording in wordings]
    assert {"tissue" in text for text in found.values()} == {True, False}
    written_by = {one.provenance["report"] for one in source}
    assert len(written_by) == 1 and written_by.pop().synthetic
    other = SideTexts(split="train", corpus=people(tmp_path), templates={"report": "{density}"})
    assert source[0].provenance != other[0].provenance  # another template is another author


def test_a_record_without_any_value_gets_no_text(tmp_path):
    source = SideTexts(split="train", corpus=people(tmp_path), templates={"report": "Aged {age}."})
    assert [bool(one.sections) for one in source] == [bool(n % 3) for n in range(30)]


def test_provenance_is_prepared_and_audited(tmp_path):
    settings = Settings(Storage(size=32, format="png"), workers=0)
    options = {"corpus": {**PHANTOM, "lateral": False}, "path": written(tmp_path)}
    folders = {"side": str(tmp_path / "side"), "plain": str(tmp_path / "plain")}
    prepare("side_texts", options, tmp_path / "side", settings, say=lambda line: None)
    plain = {key: value for key, value in options["corpus"].items() if key != "source"}
    prepare("phantom", plain, tmp_path / "plain", settings, say=lambda line: None)
    stored = {name: Prepared(split="train", path=path) for name, path in folders.items()}
    assert "provenance" not in stored["plain"].index.column_names
    made = by_id(SideTexts(split="train", **options))
    for record in stored["side"]:
        name = record.id.partition(":")[2]
        assert record.sections == made[name].sections
        assert record.provenance == made[name].provenance
    held = audit.Holdings(folders["side"])
    caption = audit.survey.provenance(held)["caption"]
    assert caption["texts"] == 2 and caption["own"] == 0 and caption["synthetic"] == 1
    assert caption["by"] == {"model-7b, 2026-01-02": 1, "a reader": 1}
    findings = audit.survey.provenance(held)["findings"]
    assert findings["own"] == findings["texts"] > 2 and findings["by"] == {}
    assert audit.survey.provenance(audit.Holdings(folders["plain"])) == {}
    assert shards.provenance_of(None) is None


def test_further_texts_are_trained_on_by_name(tmp_path):
    chosen = toys.config(data__sections=("caption",), data__max_reject_fraction=1.0)
    corpus = {"source": "mixture", "parts": ({**PHANTOM, "weight": 1.0},)}
    given = {"source": "side_texts", "corpus": corpus, "path": written(tmp_path)}
    pipeline, _ = configs.split_data(chosen.data)
    chosen.data = {**pipeline, **given}
    configs.validate(chosen)
    read = run.load_corpus(chosen, "train")
    assert set(read.texts) <= {"Clear lungs.", "A tube."} and len(read) and read.weights == (1.0,)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"id": "0-0", "caption": "a"}], {}, "row 1 does not say who wrote its text"),
        ([*TEXTS, TEXTS[0]], {}, "row 5: id 'phantom:0-0'; expected every id once"),
        ([{**TEXTS[0], "synthetic": "maybe"}], {}, "row 1: synthetic 'maybe'; choices: 1, true"),
        (TEXTS, {"sections": ("captions",)}, "no column 'captions' (did you mean 'caption'?)"),
        (TEXTS, {"columns": {"date": "day"}}, "no column 'day'"),
        (TEXTS, {"columns": {"day": "date"}}, "columns has 'day'; choices: id, by, synthetic, da"),
        (TEXTS[3:], {}, "names no record of the training split; its ids are such as phantom:0-77"),
        (TEXTS, {"templates": {"report": ()}}, "templates.report has no sentence"),
        (TEXTS, {"templates": {"report": 8}}, "templates.report has 8; expected a sentence"),
        (TEXTS, {"templates": {"report": ("A.", ("B.", 8))}}, "templates.report has 8; expected"),
        (TEXTS, {"templates": {"report": "{age.real}"}}, "{age.real} is no name"),
        (TEXTS, {"templates": {"report": "{age!r}"}}, "{age} is no name"),
        (TEXTS, {"templates": {"report": "{age"}}, "templates.report '{age'"),
    ],
)
def test_what_cannot_be_used_is_refused(rows, options, message, tmp_path):
    with pytest.raises(InputError) as error:
        whole(tmp_path, rows, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"corpus": PHANTOM}, "config.data has neither path, templates nor leave_out"),
        ({"corpus": {"source": "phantoms"}, "path": "a.csv"}, "unknown source 'phantoms'"),
        (
            {"corpus": {**PHANTOM, "size": 3}, "path": "a.csv"},
            "option in config.data.corpus 'size'",
        ),
        ({"corpus": None, "path": "a.csv"}, "config.data.corpus is None; expected source"),
    ],
)
def test_options_are_checked_before_any_corpus_is_read(given, message):
    with pytest.raises(InputError) as error:
        SideTexts.check_options("config.data", given)
    assert message in str(error.value)
