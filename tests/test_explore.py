"""The page of explore: what it answers, what it refuses, and how it works in a browser."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from mmrl import index as indexes
from mmrl.data.corpus import read_corpus
from mmrl.data.image.images import Preprocess
from mmrl.data.image.readers import decode
from mmrl.data.sources.phantom import Phantom
from mmrl.index import Index
from mmrl.types import InputError
from mmrl.web.exploring import HITS, PAGE, Explorer
from mmrl.web.records import Memory, Records
from tests.browser import DESK, is_sound, opened, readable
from tests.commands import refusal
from tests.served import TOKEN, FakeEncoder, get, serving

SENTENCES = ("image.embedding", "image.regions", "text.embedding", "text.sentence")
WORDS = ("image.embedding", "image.regions", "text.embedding", "text.words")
DIGEST = "d" * 64
HOST = "http://127.0.0.1:8001"


class Held:
    """Held-out phantoms, as `Examples` has them."""

    preprocess = Preprocess(16)

    def __init__(self, split, length=120):
        source = Phantom(split=split, length=length, render_size=32)
        self.corpus = read_corpus(f"phantom/{split}", source, sections=("findings", "impression"))
        self.name, self.ids, self.texts = self.corpus.name, self.corpus.ids, self.corpus.texts
        self.sha256, self.record = self.corpus.sha256(), self.corpus.record

    def __len__(self):
        return len(self.ids)


@pytest.fixture(scope="module")
def held():
    return {split: Held(split) for split in ("train", "val")}


def embedded(examples, encoder):
    images = [examples.corpus.image(n) for n in range(len(examples))]
    return {
        "image": encoder.embed_images(images),
        "text": encoder.embed_texts(examples.texts),
    }


def explorer(examples, names=SENTENCES, **encoder):
    made = FakeEncoder(names=names, **encoder)
    records = Records.first(examples, 1000)
    memory = Memory(embedded(examples, made))
    return Explorer(made, records, memory, title="a run", shown="Some records.")


def app(made):
    return made.app(TOKEN, hosts={"127.0.0.1:8001"}, cookie="own")


@pytest.fixture
def client(held):
    with TestClient(app(explorer(held["train"])), base_url=HOST) as opened:
        opened.get(f"/?token={TOKEN}")
        yield opened


# --- answers -------------------------------------------------------------------------------------


def test_search_and_neighbours_are_the_nearest(client, held):
    examples, encoder = held["train"], FakeEncoder()
    of = embedded(examples, encoder)
    text = "Large left effusion."
    hits = client.post("/search", json={"text": text}).json()["hits"]
    scores = of["image"] @ encoder.embed_texts([text])[0]
    assert [hit["row"] for hit in hits] == np.argsort(-scores)[: HITS["image"]].tolist()
    assert np.allclose([hit["score"] for hit in hits], np.sort(scores)[::-1][: HITS["image"]])
    hits = client.post("/neighbours", json={"row": 3}).json()["hits"]
    scores = of["text"] @ of["image"][3]
    rows = np.argsort(-scores)[: HITS["text"]].tolist()
    assert [hit["row"] for hit in hits] == rows
    assert [hit["text"] for hit in hits] == [examples.texts[row] for row in rows]


def test_a_record_has_its_image_and_boxes(client, held):
    examples = held["train"]
    row = next(n for n in range(len(examples)) if len(examples.record(n).boxes))
    found = client.get(f"/record/{row}").json()
    box = examples.record(row).boxes[0]
    assert found["id"] == examples.ids[row] and found["text"] == examples.texts[row]
    assert np.allclose(np.array(found["boxes"][0]["xyxy"]) * 32, box.xyxy)
    for path in ("image", "thumbnail"):
        image = client.get(f"/{path}/{row}")
        assert image.headers["content-type"] == "image/png"
        assert np.array_equal(decode(image.content), examples.corpus.image(row))


def test_large_images_are_sent_small(held):
    examples = Held("val")
    wide = np.arange(300 * 4000, dtype=np.uint32).reshape(300, 4000) % 65536
    examples.corpus = dataclasses.replace(examples.corpus, source=Wide(examples, wide))
    with TestClient(app(explorer(examples)), base_url=HOST) as client:
        client.get(f"/?token={TOKEN}")
        assert decode(client.get("/thumbnail/0").content).shape == (10, 128)
        assert decode(client.get("/image/0").content).shape == (77, 1024)


class Wide:
    def __init__(self, examples, image):
        self.source, self.image = examples.corpus.source, lambda position, number: np.uint16(image)

    def __getitem__(self, position):
        return self.source[position]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("names", "words"), [(SENTENCES, False), (WORDS, True)])
def test_words_look_where_they_or_their_sentences_do(held, names, words):
    examples = held["train"]
    with TestClient(app(explorer(examples, names)), base_url=HOST) as client:
        client.get(f"/?token={TOKEN}")
        found = client.post("/looks", json={"row": 0}).json()
    text = examples.texts[0]
    for (word, start, end), number in zip(found["words"], found["maps"], strict=True):
        assert text[start:end] == word and word in found["labels"][number]
        assert np.argmax(found["weights"][number]) == number % 16
    assert (len(found["labels"]) == len(found["words"])) == words
    assert found["grid"] == [4, 4] and found["square"] == [0, 0, 1, 1]


def test_the_square_of_a_padded_image_reaches_beyond_it():
    heat = FakeEncoder().word_heatmap(np.zeros((10, 20), np.uint8), "one")
    made = Explorer.__new__(Explorer)
    made._encoder, made.points = FakeEncoder(), "words"
    made._place = lambda row: (One(np.zeros((10, 20), np.uint8)), 0)
    assert np.allclose(made.looks(0)["square"], [0, -0.5, 1, 1.5])
    assert heat.geometry.offset_y == 4


@dataclasses.dataclass
class One:
    pixels: np.ndarray
    texts = ("one",)

    @property
    def corpus(self):
        return self

    def image(self, position):
        return self.pixels


def test_an_encoder_that_cannot_point_says_so(held):
    names = ("image.embedding", "text.embedding")
    with TestClient(app(explorer(held["train"], names)), base_url=HOST) as client:
        assert "nothing points" in client.get(f"/?token={TOKEN}").text
        assert client.post("/looks", json={"row": 0}).json()["words"] == []


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("scale", [10.0, None])
def test_a_changed_report_moves_the_choice(held, scale):
    examples, encoder = held["train"], FakeEncoder()
    with TestClient(app(explorer(examples, logit_scale=scale)), base_url=HOST) as client:
        client.get(f"/?token={TOKEN}")
        same = client.post("/choice", json={"row": 2, "text": examples.texts[2]}).json()
        other = client.post("/choice", json={"row": 2, "text": "Another."}).json()
    image = encoder.embed_images([examples.corpus.image(2)])
    cosines = (image @ encoder.embed_texts([examples.texts[2], "Another."]).T)[0]
    assert np.allclose(other["cosines"], cosines)
    if scale is None:
        assert other["shares"] == [None, None]
    else:
        assert same["shares"] == [0.5, 0.5]
        odds = np.exp(scale * (cosines[0] - cosines[1]))
        assert np.allclose(other["shares"], [odds / (1 + odds), 1 / (1 + odds)])


# --- refusals ------------------------------------------------------------------------------------


def test_nothing_is_shown_without_the_token(held):
    with TestClient(app(explorer(held["train"])), base_url=HOST, follow_redirects=False) as client:
        for path in ("/", "/?token=", "/?token=wrong", "/image/0", "/static/explore.js"):
            answer = client.get(path)
            assert answer.status_code == 401 and "token" in answer.json()["error"]
        assert client.post("/search", json={"text": "a"}).status_code == 401
        assert client.get(f"/image/0?token={TOKEN}").status_code == 401  # only the page takes it
        entered = client.get(f"/?token={TOKEN}")
        assert entered.status_code == 303 and entered.headers["location"] == "/"
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        page = client.get("/")
        assert page.status_code == 200 and TOKEN not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("host", ["evil.example:8001", "127.0.0.1:9999", "127.0.0.1", ""])
def test_other_hosts_are_refused(client, host):
    """A page elsewhere could otherwise reach this one through a name that it controls."""
    answer = client.get("/image/0", headers={"host": host})
    assert answer.status_code == 421 and "Host" in answer.json()["error"]


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(
    "path",
    [
        "/image/../../etc/passwd",
        "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/image/etc/passwd",
        "/image/-1",
        "/image/0.png",
        "/image/99999999999999999999",
        "/thumbnail/96",
        "/record/1e3",
        "/static/../exploring.py",
        "/static/..%2fexploring.py",
        "/static/%2e%2e/exploring.py",
        "/static/explore.html",
        "/static//etc/passwd",
        "/templates/explore.html",
    ],
)
def test_no_file_can_be_named(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json().keys() == {"error"}


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/neighbours", {"row": 96}, 404),
        ("/neighbours", {"row": -1}, 404),
        ("/neighbours", {"row": True}, 400),
        ("/neighbours", {"row": "../0"}, 400),
        ("/looks", {"row": 0, "path": "/etc/passwd"}, 400),
        ("/search", {"text": 1}, 400),
        ("/search", {"text": "a" * 20_001}, 413),
        ("/choice", {"row": 0, "text": "\ud800"}, 400),
    ],
)
def test_bad_questions_are_refused_in_one_line(client, path, body, status):
    content = json.dumps(body)
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status and "\n" not in answer.json()["error"]


def test_another_site_cannot_ask(client):
    """A form of another site sends no JSON, and its requests do not carry the cookie."""
    answer = client.post("/search", data={"text": "a"})
    assert answer.status_code == 415


# --- index ---------------------------------------------------------------------------------------


def written(folder, held, encoder, *, weights=DIGEST, per_shard=10):
    """An export of several splits and shards."""
    folder.mkdir()
    shards = []
    for split, examples in held.items():
        of = embedded(examples, encoder)
        for start in range(0, len(examples), per_shard):
            rows = slice(start, start + per_shard)
            columns = {
                "id": pa.array(examples.ids[rows]),
                "split": pa.array([split] * len(examples.ids[rows])),
            }
            for which, values in of.items():
                flat = pa.array(values[rows].ravel())
                width = values.shape[1]
                columns[f"{which}_embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
            name = f"{split}-{start:05d}.parquet"
            pq.write_table(pa.table(columns), folder / name)
            shards.append({"file": name, "records": len(columns["id"])})
    manifest = {
        "complete": True,
        "shards": sorted(shards, key=lambda shard: shard["file"], reverse=True),
        "columns": {"image_embedding": "image.embedding", "text_embedding": "text.embedding"},
        "checkpoint": {"weights_sha256": weights},
        "data": {s: {"name": e.name, "sha256": e.sha256} for s, e in held.items()},
    }
    # Any order of the shards of different splits will do, but not within a split.
    manifest["shards"] = sorted(shards, key=lambda shard: shard["file"][0], reverse=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_index_larger_than_a_chunk_finds_records_of_all_splits(held, tmp_path, monkeypatch):
    encoder = FakeEncoder(names=SENTENCES)
    index = Index.open(written(tmp_path / "index", held, encoder))
    monkeypatch.setattr(indexes, "CHUNK", 8 * 1024 * 4)  # bytes: four rows of a search
    sizes = [len(block) for _, block in index.chunks("image")]
    assert max(sizes) <= 4 < len(index) and sum(sizes) == len(index)
    records = Records.of_index(index, DIGEST, held.__getitem__)
    assert len(records) == sum(map(len, held.values()))
    shown = [(e.ids[n]) for e, n in map(records.place, range(len(records)))]
    assert shown == index.ids(range(len(records)))
    made = Explorer(encoder, records, index, title="", shown="")
    every = {which: [] for which in ("image", "text")}
    for row in range(len(records)):
        examples, position = records.place(row)
        every["image"].append(encoder.embed_images([examples.corpus.image(position)])[0])
    scores = np.stack(every["image"]) @ encoder.embed_texts(["Effusion."])[0]
    hits = made.search("Effusion.")["hits"]
    assert [hit["row"] for hit in hits] == np.argsort(-scores)[: HITS["image"]].tolist()
    assert [hit["id"] for hit in hits] == [shown[hit["row"]] for hit in hits]


def test_an_index_of_another_encoder_or_other_records_is_refused(held, tmp_path):
    index = Index.open(written(tmp_path / "index", held, FakeEncoder(), weights="e" * 64))
    with pytest.raises(InputError, match="made by other weights"):
        Records.of_index(index, DIGEST, held.__getitem__)
    with pytest.raises(InputError, match="other records of"):
        Records.of_index(index, "e" * 64, lambda split: Held(split, 60))


# --- browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(held):
    made = explorer(held["train"])
    # The address is known only when the server runs, so every host is accepted.
    with serving(made.app(TOKEN, hosts=set(), cookie="own")) as address:
        yield f"http://{address}/"


def test_the_page_in_a_browser(chromium, page, held):
    examples = held["train"]
    with opened(chromium, f"{page}?token={TOKEN}", dark=True, origin=page) as visit:
        browser = visit.page
        browser.set_default_timeout(10_000)
        assert browser.url == page
        browser.locator("#records img").nth(PAGE - 1).wait_for()
        browser.click("#more")
        browser.locator("#records img").nth(2 * PAGE - 1).wait_for()
        browser.fill("#query", "Effusion.")
        browser.press("#query", "Enter")
        browser.locator("#hits img").nth(HITS["image"] - 1).wait_for()
        row = next(n for n in range(2 * PAGE) if len(examples.record(n).boxes))
        browser.locator(f"#records button[data-row='{row}']").click()
        equal, moved = (
            browser.locator("#other output", **{which: "50.0"})
            for which in ("has_text", "has_not_text")
        )
        equal.wait_for()
        assert browser.inner_text("#report") == examples.texts[row]
        assert browser.locator("#reports li").count() == HITS["text"]
        assert "dashed: " in browser.inner_text("#caption")
        before = drawn(browser)
        word = browser.locator(".word").first
        word.click()
        assert word.get_attribute("aria-pressed") == "true"
        first = examples.texts[row].split(".")[0]
        assert f"where \u201c{first}.\u201d looks" in browser.inner_text("#caption")
        near, far = np.subtract(drawn(browser), before)
        assert near > 20 > abs(far)  # the first map is greatest in the first of 4 x 4 regions
        word.click()
        assert drawn(browser) == before
        browser.fill("#changed", "Left, then RIGHT, then upright.")
        moved.wait_for()
        shares = [float(one.split()[0]) for one in browser.locator("output").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        browser.click("#sides")
        changed = browser.evaluate("document.querySelector('#changed').value")
        assert changed == "Right, then LEFT, then upright."
        browser.click("#reset")
        equal.wait_for()
        is_sound(visit)
        assert readable(visit) > 4.5


def drawn(browser):
    """The mean opacity of the overlay in its first quarter of rows and columns, and in its half."""
    return browser.evaluate(
        """() => {
          const canvas = document.querySelector("#overlay");
          const {width, height} = canvas;
          return [[0, 0, width / 5, height / 5], [0, height / 2, width, height / 2]].map((part) => {
            const {data} = canvas.getContext("2d").getImageData(...part);
            let sum = 0;
            for (let n = 3; n < data.length; n += 4) sum += data[n];
            return sum / (data.length / 4);
          });
        }"""
    )


def test_the_page_fits_a_desk(chromium, page):
    with opened(chromium, f"{page}?token={TOKEN}", size=DESK, origin=page) as visit:
        visit.page.locator("#records button").first.click()
        visit.page.locator("#other output", has_text="50.0").wait_for()
        assert visit.page.locator("#study").bounding_box()["x"] > DESK[0] / 2
        is_sound(visit)
        assert readable(visit) > 4.5


def test_markup_in_a_report_is_shown_as_text(chromium, held):
    examples = Held("val")
    evil = "<img src=x onerror=alert(1)> & \u201cleft\u201d."
    examples.texts = [evil, *examples.texts[1:]]
    examples.ids = ["<b>id</b>", *examples.ids[1:]]
    made = explorer(examples)
    made._title = "<script>alert(1)</script>"
    with serving(made.app(TOKEN, hosts=set(), cookie="own")) as address:
        origin = f"http://{address}/"
        with opened(chromium, f"{origin}?token={TOKEN}", origin=origin) as visit:
            visit.page.locator("#records button").first.click()
            visit.page.locator("#other output", has_text="%").wait_for()
            assert visit.page.inner_text("#report") == evil
            assert visit.page.inner_text("#title") == "<b>id</b>"
            assert visit.page.inner_text("h1") == made._title
            is_sound(visit)


@pytest.mark.exhaustive
def test_what_fails_is_said_on_the_page(chromium, held):
    made = explorer(held["train"])
    with serving(made.app(TOKEN, hosts=set(), cookie="own")) as address:
        origin = f"http://{address}/"
        with opened(chromium, f"{origin}?token={TOKEN}", origin=origin) as visit:
            visit.page.locator("#records img").first.wait_for()
            visit.page.evaluate(
                "() => document.querySelector('#query').removeAttribute('maxlength')"
            )
            visit.page.fill("#query", "a" * 20_001)
            visit.page.press("#query", "Enter")
            visit.page.locator("#error", has_text="20001 characters").wait_for()


def test_the_token_is_asked_for_on_the_network(page):
    assert get(page.split("/")[2], "/")[0] == 401


# --- command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--index=x", "--split=val"], "expected --split or --index"),
        (["--split=all"], "unknown value of --split"),
        (["--host=0.0.0.0"], "expected the one that the browser opens"),
        (["--port=70000"], "port"),
    ],
)
def test_wrong_flags_are_refused_before_the_encoder_is_read(capsys, tmp_path, arguments, line):
    assert line in refusal(capsys, "mmrl.explore", f"--workdir={tmp_path}", *arguments)
