"""The service: equal to single calls, and a status and one line for everything else."""

import base64
import concurrent.futures
import json
import logging
import socket
import struct
import time
import zlib

import numpy as np
import pytest
from starlette.testclient import TestClient

from mmrl import extras, web
from mmrl.types import InputError
from mmrl.web import listening
from mmrl.web.address import LOOPBACK, bind, read_token
from tests import dicoms
from tests.commands import refusal
from tests.served import TOKEN, FakeEncoder, SmallBatches, ask, get, png, service, serving

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56), np.uint8)
OWN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client():
    with TestClient(service().app(TOKEN), headers=OWN) as opened:
        yield opened


def line_of(answer, status):
    """The one line of a refusal."""
    assert answer.status_code == status, answer.text
    line = answer.json()["error"]
    assert line and "\n" not in line and answer.json().keys() == {"error"}
    return line


def encoded(image):
    return base64.b64encode(image).decode()


# --- answers -------------------------------------------------------------------------------------


def test_answers_equal_single_calls(client):
    encoder, images = FakeEncoder(), [png(IMAGE), png(IMAGE.T)]
    one = client.post("/embed/image", content=images[0], headers={"content-type": "image/png"})
    two = client.post("/embed/image", json={"images": [encoded(image) for image in images]})
    texts = client.post("/embed/text", json={"texts": ["Effusion.", "Größe \u2265 3 cm."]})
    both = client.post(
        "/similarity", json={"images": [encoded(images[1])], "texts": ["Effusion.", "x"]}
    )
    expected = encoder.embed_images(images)
    assert np.array_equal(np.float32(one.json()["embeddings"]), expected[:1])
    assert np.array_equal(np.float32(two.json()["embeddings"]), expected)
    words = encoder.embed_texts(["Effusion.", "Größe \u2265 3 cm."])
    assert np.array_equal(np.float32(texts.json()["embeddings"]), words)
    cosine = expected[1:] @ encoder.embed_texts(["Effusion.", "x"]).T
    assert np.allclose(both.json()["cosine"], cosine, atol=1e-7)
    assert both.json()["logit_scale"] == 10.0


def test_concurrent_requests_share_batches_and_get_their_own_rows():
    encoder = FakeEncoder(seconds=0.01)
    made = service(encoder)
    with serving(made.app(TOKEN)) as address:
        wanted = [[f"text {n} {k}" for k in range(1 + n % 5)] for n in range(60)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda t: ask(address, "/embed/text", {"texts": t}), wanted))
        status, metrics = get(address, "/metrics", **OWN)
        assert status == 200
    for texts, (status, answer) in zip(wanted, found, strict=True):
        assert status == 200
        assert np.array_equal(np.float32(answer["embeddings"]), FakeEncoder().embed_texts(texts))
    items = sum(map(len, wanted))
    assert sum(encoder.counts) == items and len(encoder.counts) < 60
    assert 'mmrl_requests_total{route="/embed/text",status="200"} 60.0' in metrics
    assert f'mmrl_batch_items_sum{{kind="texts"}} {float(items)}' in metrics
    assert "mmrl_held_bytes 0.0" in metrics and 'mmrl_queued_items{kind="texts"} 0.0' in metrics


def test_batches_have_few_sizes():
    encoder = SmallBatches()
    made = service(encoder)
    with TestClient(made.app(TOKEN), headers=OWN) as client:
        for count in (1, 3, 5, 64):
            answer = client.post("/embed/text", json={"texts": ["a"] * count})
            assert answer.status_code == 200
    assert encoder.counts == [1, 3, 5, 64]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/embed/text", "/metrics", "/nothing", "/embed/../metrics"])
@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer wrong"}, {"authorization": "x"}])
def test_nothing_is_answered_without_the_token(path, given):
    with TestClient(service().app(TOKEN)) as client:
        answer = client.get(path, headers=given)
        assert "token" in line_of(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b'{"texts": ["a"', 400, "not JSON"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"texts": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "nested too deeply"),
        (b'{"texts": [NaN]}', 400, "not JSON"),
        (b'{"texts": [1e999, -Infinity]}', 400, "not JSON"),
        (b'{"texts": [1' + b"0" * 9999 + b"]}", 400, "not JSON"),
        (b'{"texts": ["a"], "more": 1}', 400, "keys texts"),
        (b'["a"]', 400, "keys texts"),
        (b'{"texts": "a"}', 400, "texts is no list"),
        (b'{"texts": []}', 400, "0 texts"),
        (b'{"texts": ["a", 1]}', 400, "something else"),
        (b'{"texts": ["a", "\\ud800"]}', 400, "text 1 is no Unicode"),
        (b"\xff\xfe", 400, "not JSON"),
        (json.dumps({"texts": ["a"] * 65}).encode(), 413, "65 texts; expected 1 to 64"),
        (json.dumps({"texts": ["a" * 101]}).encode(), 413, "101 characters"),
        (b'{"texts": ["' + b"a" * 300_000 + b'"]}', 413, "more than 200000 bytes"),
    ],
)
def test_bad_json_is_refused_in_one_line(body, status, line):
    made = service(characters=100, body=200_000)
    with TestClient(made.app(TOKEN), headers=OWN) as client:
        answer = client.post(
            "/embed/text", content=body, headers={"content-type": "application/json"}
        )
        assert line in line_of(answer, status)
        assert client.post("/embed/text", json={"texts": ["a"]}).status_code == 200
    assert made.admission.requests == made.admission.held == 0


def bomb(side):
    """A PNG of a few bytes whose header states side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("image", "status", "line"),
    [
        (bomb(30_000), 415, "30000 x 30000 pixels"),
        (bomb(200), 413, "200 x 200 pixels; expected at most 10000"),
        (b"", 415, "empty"),
        (b"../../etc/passwd", 415, "expected a JPEG, PNG, TIFF, WebP or DICOM image"),
        (png(IMAGE)[:-20], 415, "truncated"),
        (b"GIF89a", 415, "GIF"),
    ],
)
def test_bad_images_are_refused_in_one_line(image, status, line):
    with TestClient(service(pixels=10_000).app(TOKEN), headers=OWN) as client:
        kind = {"content-type": "application/octet-stream"}
        assert line in line_of(client.post("/embed/image", content=image, headers=kind), status)
        listed = client.post("/embed/image", json={"images": [encoded(png(IMAGE)), encoded(image)]})
        assert line in line_of(listed, status)


def test_a_dicom_file_is_read_and_its_header_stays_inside(client, caplog):
    caplog.set_level(logging.DEBUG)
    kind = {"content-type": "application/dicom"}
    names = {"PatientName": "Doe^Jane", "PatientID": "MRN-4711"}
    good = dicoms.image(IMAGE, 8, **names)
    answer = client.post("/embed/image", content=good, headers=kind)
    expected = FakeEncoder().embed_images([good])
    assert np.array_equal(np.float32(answer.json()["embeddings"]), expected)
    burned = dicoms.image(IMAGE, 8, BurnedInAnnotation="YES", **names)
    line = line_of(client.post("/embed/image", content=burned, headers=kind), 415)
    assert "burned" in line
    cut = line_of(client.post("/embed/image", content=good[:-9], headers=kind), 415)
    for said in (line, cut, answer.text, caplog.text):
        assert "Doe" not in said and "4711" not in said


@pytest.mark.parametrize(
    ("path", "kind", "line"),
    [
        ("/embed/text", "text/plain", "application/json"),
        ("/embed/image", "multipart/form-data; boundary=x", "that of an image"),
        ("/similarity", "image/png", "application/json"),
    ],
)
def test_other_content_types_are_refused(client, path, kind, line):
    answer = client.post(path, content=b"x", headers={"content-type": kind})
    assert line in line_of(answer, 415)


def test_other_paths_and_methods_are_refused(client):
    line_of(client.get("/embed/text"), 405)
    for path in ("/etc/passwd", "/embed/%2e%2e/%2e%2e/etc/passwd", "/static/../serve.py"):
        line_of(client.get(path), 404)


def test_an_encoder_of_images_alone_serves_no_texts():
    made = service(FakeEncoder(names=("image.embedding",)))
    with TestClient(made.app(TOKEN), headers=OWN) as client:
        line_of(client.post("/embed/text", json={"texts": ["a"]}), 404)
        assert client.post("/embed/image", json={"images": [encoded(png(IMAGE))]}).is_success


def test_text_that_is_no_base64_is_refused(client):
    assert "base64" in line_of(client.post("/embed/image", json={"images": ["é!"]}), 400)


def test_a_failure_is_one_line_that_quotes_nothing(caplog):
    class Broken(FakeEncoder):
        def embed_texts(self, texts):
            raise RuntimeError(f"cannot embed {texts}")

    with TestClient(service(Broken()).app(TOKEN), headers=OWN) as client:
        answer = client.post("/embed/text", json={"texts": ["Jane Doe"]})
        assert line_of(answer, 500) == "the server failed"
    assert "RuntimeError" in caplog.text and "Jane" not in caplog.text


def test_an_embedding_that_is_not_finite_is_refused():
    class Broken(FakeEncoder):
        def embed_texts(self, texts):
            return np.where([[t == "b"] for t in texts], np.nan, super().embed_texts(texts))

    with TestClient(service(Broken()).app(TOKEN), headers=OWN) as client:
        answer = client.post("/embed/text", json={"texts": ["a", "b"]})
        assert "not finite" in line_of(answer, 500)
        assert client.post("/embed/text", json={"texts": ["a"]}).status_code == 200


# --- slow, cancelled, too many -------------------------------------------------------------------


def connect(address, text):
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(text.encode())
    return connection


def answer_of(connection):
    """(status, body) of what a connection gets until it ends."""
    with connection:
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


HEAD = (
    "POST /embed/text HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer {TOKEN}\r\n"
)


def test_slow_bodies_and_heads_are_ended(monkeypatch):
    monkeypatch.setattr(listening, "_HEAD_SECONDS", 0.3)
    made = service(seconds=0.5)
    with serving(made.app(TOKEN)) as address:
        slow_head = connect(address, HEAD[:20])
        slow_body = connect(address, HEAD + "Content-Length: 100\r\n\r\n{")
        short = connect(address, HEAD + "Content-Length: 100\r\n\r\n{")
        short.close()
        begun = time.monotonic()
        status, body = answer_of(slow_head)
        assert status == 408 and "head of a request" in json.loads(body)["error"]
        status, body = answer_of(slow_body)
        assert status == 408 and "body took longer" in json.loads(body)["error"]
        assert time.monotonic() - begun < 5
        assert ask(address, "/embed/text", {"texts": ["a"]})[0] == 200
    assert made.admission.requests == made.admission.held == 0


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    "text",
    [
        "GET / HTTP/x\r\n\r\n",
        "nonsense\r\n\r\n",
        HEAD + "Content-Length: -1\r\n\r\n",
        HEAD + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /" + "a" * 100_000,
    ],
)
def test_what_is_no_http_is_refused_in_one_line(text):
    made = service()
    with serving(made.app(TOKEN)) as address:
        status, body = answer_of(connect(address, text))
        assert status == 400 and json.loads(body)["error"]
        assert ask(address, "/embed/text", {"texts": ["a"]})[0] == 200
    assert made.admission.requests == 0


def test_a_body_longer_than_stated_does_not_become_a_request():
    with serving(service().app(TOKEN)) as address:
        body = '{"texts": ["a"]}'
        given = connect(address, HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}xx\r\n\r\n")
        status, rest = answer_of(given)
        assert status == 200 and rest.count("embeddings") == 1
        assert "HTTP/1.1 400 Bad Request" in rest and "no valid HTTP" in rest


def test_requests_beyond_the_limit_are_refused_and_the_others_answered():
    encoder = FakeEncoder(seconds=0.2)
    made = service(encoder, waiting=4)
    with (
        serving(made.app(TOKEN)) as address,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        asked = [pool.submit(ask, address, "/embed/text", {"texts": ["a"]}) for _ in range(12)]
        statuses = sorted(one.result()[0] for one in asked)
    assert statuses.count(200) >= 4 and set(statuses) == {200, 429}


def test_bodies_that_fill_the_memory_are_refused():
    made = service(held=1000, body=900)
    with serving(made.app(TOKEN)) as address:
        first = connect(address, HEAD + "Content-Length: 900\r\n\r\n" + " " * 800)
        while made.admission.held < 800:
            time.sleep(0.01)
        status, answer = ask(address, "/embed/text", {"texts": ["a" * 300]})
        assert status == 429 and "no room" in answer["error"]
        first.close()
        while made.admission.held:
            time.sleep(0.01)
        assert ask(address, "/embed/text", {"texts": ["a" * 300]})[0] == 200


def test_who_sends_a_large_body_reads_why_it_is_refused():
    made = service(waiting=1, body=2**20)
    with serving(made.app(TOKEN)) as address:
        large = b" " * 2**25
        assert ask(address, "/embed/text", large)[0] == 413
        first = connect(address, HEAD + "Content-Length: 900\r\n\r\n")
        while not made.admission.requests:
            time.sleep(0.01)
        assert ask(address, "/embed/text", large)[0] == 429
        first.close()


def test_items_of_cancelled_requests_are_not_embedded():
    encoder = FakeEncoder(seconds=0.3)
    made = service(encoder)
    with serving(made.app(TOKEN)) as address:
        body = '{"texts": ["a"]}'
        text = HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}"
        first = connect(address, text)
        while not encoder.counts:  # the device works on the first request
            time.sleep(0.01)
        others = [connect(address, text) for _ in range(5)]
        while made.admission.requests < 6:
            time.sleep(0.01)
        for other in others:
            other.close()
        while made.admission.requests > 1:
            time.sleep(0.01)
        assert ask(address, "/embed/text", {"texts": ["b"]})[0] == 200
        first.close()
    assert encoder.counts == [1, 1]


def test_an_answer_that_takes_too_long_is_refused():
    with serving(service(FakeEncoder(seconds=1.0), seconds=0.2).app(TOKEN)) as address:
        status, answer = ask(address, "/embed/text", {"texts": ["a"]})
    assert status == 503 and "took longer than 0.2 seconds" in answer["error"]


def test_the_end_finishes_what_waits():
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        serving(service(encoder := FakeEncoder(seconds=0.4)).app(TOKEN)) as address,
    ):
        asked = pool.submit(ask, address, "/embed/text", {"texts": ["a"]})
        while not encoder.counts:
            time.sleep(0.01)
    assert asked.result()[0] == 200


def test_connections_beyond_the_limit_get_one_line():
    with serving(service().app(TOKEN), connections=3) as address:
        idle = [connect(address, "GET") for _ in range(3)]
        status, text = get(address, "/health")
        assert status == 503 and text and "\n" not in text
        for one in idle:
            one.close()


# --- command -------------------------------------------------------------------------------------


def test_logs_hold_no_payload(client, caplog):
    caplog.set_level(logging.DEBUG)
    client.post("/embed/text?name=Jane", json={"texts": ["Jane Doe"]})
    client.get("/Jane/Doe")
    assert "POST /embed/text 200" in caplog.text and "GET - 404" in caplog.text
    own = [r.getMessage() for r in caplog.records if not r.name.startswith("httpx")]
    assert "Jane" not in "".join(own)


def test_tokens(tmp_path):
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    assert read_token(file) == "0123456789abcdef"
    for wrong in ("short", "0123456789abcdef\nmore", "0123456789abcd\u00e9f"):
        file.write_text(wrong)
        with pytest.raises(InputError, match="holds no token"):
            read_token(file)
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "missing")


def test_an_address_in_use_is_refused_before_the_encoder_is_read(capsys, tmp_path):
    bound = bind(LOOPBACK, 0)
    bound.listen()
    port = bound.getsockname()[1]
    line = refusal(capsys, "mmrl.serve", f"--workdir={tmp_path}", f"--port={port}")
    bound.close()
    assert "in use" in line
    assert "--host" in refusal(capsys, "mmrl.serve", f"--workdir={tmp_path}", "--host=8.8.8.8")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(extras.PACKAGES, "serve", ("starlette", "no_such_package"))
    with pytest.raises(
        InputError, match=r"needs no_such_package: pip install starlette no_such_package$"
    ):
        web.check_installed()
