"""Serves a run on the loopback device: many requests at once, and requests that mean harm.

    python -m benchmarks.serve --workdir=runs/pretrain --out=docs/results

Starts `python -m mmrl.serve` and asks it REQUESTS times, CONCURRENCY at a time, for embeddings and
similarities of one to eight texts and phantoms of 64 to 1024 pixels, as JPEG, PNG and DICOM. Every
answer must equal that of a single call of `mmrl.load`. Then the same again, while others send slow,
cancelled, malformed, huge and hostile requests, each of which must get its status and one line.
SIGTERM ends the server while it works; what it has begun must be answered. Writes serve.md.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydicom import FileDataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset

import mmrl
from mmrl import files
from mmrl.data.sources.phantom import Phantom

TOLERANCE = 1e-6
SIDES = (64, 200, 512, 1024)
BODY, SECONDS = 2**24, 5.0  # limits of the server, small enough to reach them soon
NAME = "Doe^Jane"  # in the headers of DICOM files; must never leave the server


class Case(NamedTuple):
    """A request with the answer that it must get.

    Attributes:
      path, kind, body: of the request.
      key: of the answer, and its value.
    """

    path: str
    kind: str
    body: bytes
    key: str
    expected: np.ndarray


class Harm(NamedTuple):
    """A request that must be refused.

    Attributes:
      name: for the table.
      send: (HOST:PORT, headers with the token) -> (status, body); None where it leaves first.
      statuses: that it may get.
    """

    name: str
    send: Callable[[str, dict[str, str]], tuple[int, bytes] | None]
    statuses: tuple[int, ...]


def main() -> None:
    """Runs the server and writes what it did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a run with texts and images")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="for serve.md")
    parser.add_argument("--requests", type=int, default=1000, help="of each of two rounds")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at a time")
    arguments = parser.parse_args()
    cases = list(itertools.islice(made(arguments.workdir), 60))
    with tempfile.TemporaryDirectory() as folder, Server(arguments.workdir, Path(folder)) as server:
        memory = [server.memory()]
        calm = Round.of(server, cases, arguments.requests, arguments.concurrency)
        memory.append(server.memory())
        stop = threading.Event()
        harm = concurrent.futures.ThreadPoolExecutor(1).submit(disturb, server, stop)
        disturbed = Round.of(server, cases, arguments.requests, arguments.concurrency)
        stop.set()
        refused = harm.result()
        memory.append(server.memory())
        ended = server.end(cases)
    lines = page(arguments, calm, disturbed, refused, memory, server.peak, ended)
    files.write(arguments.out / "serve.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    wrong = calm.wrong + disturbed.wrong + sum(not ok for _, _, ok in refused)
    if wrong or not ended.endswith("status 0"):
        sys.exit(f"{wrong} answers are wrong; {ended}")


def made(workdir: Path) -> Iterator[Case]:
    """Requests of all kinds, with the answers of single calls."""
    encoder = mmrl.load(str(workdir))
    draw = random.Random(0)
    sources = {side: Phantom(split="test", length=200, render_size=side) for side in SIDES}
    forms = {"image/jpeg": _jpeg, "image/png": _png, "application/dicom": _dicom}
    for number in itertools.count():
        side, form = draw.choice(SIDES), draw.choice(list(forms))
        records = [sources[side][(number + k) % 20] for k in range(draw.randint(1, 8))]
        images = [forms[form](record.images[0].load()) for record in records]
        texts = [" ".join(record.sections.values()) for record in records]
        listed = [base64.b64encode(image).decode() for image in images]
        of_images, of_texts = encoder.embed_images(images), encoder.embed_texts(texts)
        json_ = "application/json"
        yield from (
            Case("/embed/image", form, images[0], "embeddings", of_images[:1]),
            Case("/embed/image", json_, _json(images=listed), "embeddings", of_images),
            Case("/embed/text", json_, _json(texts=texts), "embeddings", of_texts),
            Case(
                "/similarity",
                json_,
                _json(images=listed, texts=texts[:3]),
                "cosine",
                of_images @ of_texts[:3].T,
            ),
        )


def _json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def _dicom(pixels: np.ndarray, **fields: Any) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3.4")
    data = FileDataset("", {}, b"\0" * 128, meta)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.4"
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PatientName = NAME
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB"
    file = io.BytesIO()
    dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


class Server:
    """The command in a process of its own, from its start to its end."""

    def __init__(self, workdir: Path, folder: Path) -> None:
        token, secret = folder / "token", "token-of-the-benchmark"
        files.write(token, secret)
        self.headers = {"authorization": f"Bearer {secret}"}
        self._log = folder / "log"
        flags = [
            f"--workdir={workdir}",
            "--port=0",
            f"--token_file={token}",
            f"--max_body={BODY}",
            f"--max_seconds={SECONDS}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mmrl.serve", *flags], stdout=log, stderr=log
            )
        self.address, self.peak = "", 0

    def __enter__(self) -> "Server":
        while not self.address:
            time.sleep(0.1)
            if self._process.poll() is not None:
                raise RuntimeError(self.log())
            self.address = self.log().partition("at http://")[2].partition("\n")[0]
        while True:
            try:
                self.ask(http.client.HTTPConnection(self.address), "/health", "", None)
                return self
            except ConnectionError:
                time.sleep(0.1)

    def __exit__(self, *error: Any) -> None:
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        """What the command has printed."""
        return self._log.read_text(encoding="utf-8")

    def memory(self) -> int:
        """Resident memory, in MiB; also notes the highest so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        found = {line.split(":")[0]: line.split() for line in status.splitlines()}
        self.peak = int(found["VmHWM"][1]) // 1024
        return int(found["VmRSS"][1]) // 1024

    def ask(
        self, connection: http.client.HTTPConnection, path: str, kind: str, body: bytes | None
    ) -> tuple[int, Any]:
        """Status and JSON of the answer to one request."""
        headers = {**self.headers, "content-type": kind}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def end(self, cases: list[Case]) -> str:
        """Sends SIGTERM while the server works; what happened to what it had begun."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(
                    self.ask,
                    http.client.HTTPConnection(self.address, timeout=60),
                    *(case.path, case.kind, case.body),
                )
                for case in cases[:8]
            ]
            while not any(one.done() for one in asked):
                time.sleep(0.001)
            self._process.send_signal(signal.SIGTERM)
            counts = Counter(one.result()[0] for one in asked if one.exception() is None)
        refused = sum(one.exception() is not None for one in asked)
        status = self._process.wait(60)
        quoted = NAME in self.log() or "effusion" in self.log()
        return (
            f"{counts[200]} of 8 requests were answered, {refused} found the server gone; the log "
            f"{'quotes' if quoted else 'holds no'} payload; exit status {status}"
        )


class Round(NamedTuple):
    """What came of many requests.

    Attributes:
      milliseconds: of each, sorted. seconds: of all. wrong: number of answers that are not as
        expected. difference: the greatest from single calls.
    """

    milliseconds: list[float]
    seconds: float
    wrong: int
    difference: float

    @classmethod
    def of(cls, server: Server, cases: list[Case], count: int, concurrency: int) -> "Round":
        """Asks `count` times, `concurrency` at a time."""
        local = threading.local()

        def ask(number: int) -> tuple[float, float]:
            case = cases[number % len(cases)]
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection(server.address, timeout=60)
            begun = time.perf_counter()
            status, answer = server.ask(local.connection, case.path, case.kind, case.body)
            seconds = time.perf_counter() - begun
            if status != 200:
                print(f"{case.path}: {status} {answer}", file=sys.stderr)
                return seconds, np.inf
            found = np.asarray(answer[case.key], np.float32)
            fits = found.shape == case.expected.shape
            return seconds, float(np.abs(found - case.expected).max()) if fits else np.inf

        begun = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
            found = list(pool.map(ask, range(count)))
        seconds = time.perf_counter() - begun
        differences = [difference for _, difference in found]
        return cls(
            sorted(1000 * taken for taken, _ in found),
            seconds,
            sum(difference > TOLERANCE for difference in differences),
            max(differences),
        )

    def row(self, name: str) -> str:
        """A row of the table."""
        parts = statistics.quantiles(self.milliseconds, n=100)
        count = len(self.milliseconds)
        return (
            f"| {name} | {count} | {self.wrong} | {self.difference:.1e} | "
            f"{count / self.seconds:.0f} | {parts[49]:.0f} | {parts[98]:.0f} |"
        )


def disturb(server: Server, stop: threading.Event) -> list[tuple[str, str, bool]]:
    """Sends every harmful request again and again: (name, statuses, whether all were right)."""
    seen: dict[str, Counter[str]] = {harm.name: Counter() for harm in HARMS}
    right = dict.fromkeys(seen, True)

    def send(harm: Harm) -> None:
        found = harm.send(server.address, server.headers)
        if found is None:
            seen[harm.name]["left"] += 1
            return
        status, body = found
        seen[harm.name][str(status)] += 1
        one_line = body.strip().count(b"\n") == 0 and NAME.encode() not in body
        right[harm.name] &= status in (*harm.statuses, 429) and one_line and len(body) < 300

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        while True:
            list(pool.map(send, HARMS))
            if stop.is_set():
                break
    return [
        (name, ", ".join(f"{s}: {n}" for s, n in sorted(counts.items())), right[name])
        for name, counts in seen.items()
    ]


def _sent(first: str, *more: bytes, pause: float = 0.0) -> Any:
    """Sends bytes as they are, with pauses; HEAD stands for the headers with the token."""

    def send(address: str, headers: dict[str, str]) -> tuple[int, bytes]:
        host, _, port = address.rpartition(":")
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        parts: list[bytes] = []
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            with contextlib.suppress(ConnectionError):  # the answer may be there nevertheless
                for part in (first.replace("HEAD", head).encode(), *more):
                    connection.sendall(part)
                    time.sleep(pause)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    parts.append(part)
        lines, _, body = b"".join(parts).partition(b"\r\n\r\n")
        return int(lines.split()[1]) if lines else 0, body

    return send


def _post(path: str, kind: str, body: bytes, **changed: str) -> Any:
    def send(address: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address, timeout=60)
        with contextlib.suppress(ConnectionError):  # the answer may be there nevertheless
            connection.request("POST", path, body, {**headers, "content-type": kind, **changed})
        answer = connection.getresponse()
        return answer.status, answer.read()

    return send


def _leave(address: str, headers: dict[str, str]) -> None:
    """Asks and leaves before the answer."""
    host, _, port = address.rpartition(":")
    body = b'{"texts": ["left"]}'
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /embed/text HTTP/1.1\r\nHost: x\r\n{lines}Content-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def bomb(side: int) -> bytes:
    """A PNG of zeros, side x side, in a thousandth of its bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 1) * side), 9)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


_TEXT, _IMAGE, _JSON = "/embed/text", "/embed/image", "application/json"
_START = "POST /embed/text HTTP/1.1\r\nHost: x\r\nHEADContent-Type: application/json\r\n"
_DEEP = b'{"texts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
_SMALL = np.zeros((40, 40), np.uint8)
HARMS = (
    Harm(
        "a body that trickles",
        _sent(_START + "Content-Length: 99\r\n\r\n", *[b"{"] * 8, pause=SECONDS / 6),
        (408,),
    ),
    Harm("a head that stops", _sent("POST /embed/text HTTP/1.1\r\nHost:"), (408,)),
    Harm("left before the answer", _leave, ()),
    Harm("no HTTP", _sent("hello\r\n\r\n"), (400,)),
    Harm("Content-Length: -1", _sent(_START + "Content-Length: -1\r\n\r\n"), (400,)),
    Harm(
        "two values of Content-Length",
        _sent(_START + "Content-Length: 1\r\nContent-Length: 9\r\n\r\n{"),
        (400,),
    ),
    Harm("a wrong chunk", _sent(_START + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"), (400,)),
    Harm("a head of 100 kB", _sent("GET /" + "a" * 100_000 + " HTTP/1.1\r\n"), (400,)),
    Harm("a body above the limit", _post(_IMAGE, "image/png", bytes(BODY + 1)), (413,)),
    Harm("a stated length of 1 TB", _sent(_START + f"Content-Length: {2**40}\r\n\r\n{{"), (413,)),
    Harm("an image of 20,000 x 20,000 pixels", _post(_IMAGE, "image/png", bomb(20_000)), (415,)),
    Harm("an image of 7,000 x 7,000 pixels", _post(_IMAGE, "image/png", bomb(7000)), (413,)),
    Harm("a cut PNG", _post(_IMAGE, "image/png", _png(_SMALL)[:-9]), (415,)),
    Harm("a text in place of an image", _post(_IMAGE, "image/png", b"../../etc/passwd"), (415,)),
    Harm("no base64", _post(_IMAGE, _JSON, _json(images=["/etc/passwd", "!"])), (400, 415)),
    Harm(
        "a DICOM image with burned-in text",
        _post(_IMAGE, "application/dicom", _dicom(_SMALL, BurnedInAnnotation="YES")),
        (415,),
    ),
    Harm("a cut DICOM file", _post(_IMAGE, "application/dicom", _dicom(_SMALL)[:-99]), (415,)),
    Harm("JSON of 100,000 brackets", _post(_TEXT, _JSON, _DEEP), (400,)),
    Harm("NaN", _post(_TEXT, _JSON, b'{"texts": [NaN]}'), (400,)),
    Harm("an unpaired surrogate", _post(_TEXT, _JSON, b'{"texts": ["\\ud800"]}'), (400,)),
    Harm("a long text", _post(_TEXT, _JSON, _json(texts=["a" * 100_000])), (413,)),
    Harm("100 texts", _post(_TEXT, _JSON, _json(texts=["a"] * 100)), (413,)),
    Harm("no token", _post(_TEXT, _JSON, _json(texts=["a"]), authorization=""), (401,)),
    Harm("a path outside", _post("/embed/../../etc/passwd", _JSON, b"{}"), (404,)),
    Harm("an encoded path", _post("/%2e%2e/%2e%2e/etc/passwd", _JSON, b"{}"), (404,)),
    Harm("another method", _sent("DELETE /embed/text HTTP/1.1\r\nHost: x\r\nHEAD\r\n"), (405,)),
)
"""Status 429 is right as well: the server may be full."""


def page(
    arguments: argparse.Namespace,
    calm: Round,
    disturbed: Round,
    refused: list[tuple[str, str, bool]],
    memory: list[int],
    peak: int,
    ended: str,
) -> list[str]:
    """The page of the results."""
    cores = len(os.sched_getaffinity(0))
    return [
        "# Serving",
        "",
        f"Made by `python -m benchmarks.serve --workdir={arguments.workdir} "
        f"--requests={arguments.requests} --concurrency={arguments.concurrency}` on {cores} cores; "
        "the clients run on the same cores.",
        "",
        "| requests | sent | wrong | greatest difference | per second | median ms | 99 % ms |",
        "|---|---|---|---|---|---|---|",
        calm.row(f"{arguments.concurrency} at a time"),
        disturbed.row("the same, while others do harm"),
        "",
        f"A request holds one to eight texts, or images of {', '.join(map(str, SIDES))} pixels as "
        "JPEG, PNG or DICOM. An answer is wrong if its status is not 200 or a value differs from "
        f"that of a single call of `mmrl.load` by more than {TOLERANCE:g}.",
        "",
        f"Resident memory: {memory[0]} MiB after the start, {memory[1]} MiB after the first round, "
        f"{memory[2]} MiB after the second; at most {peak} MiB.",
        "",
        f"SIGTERM while it works: {ended}.",
        "",
        "## Refused",
        "",
        f"Limits: bodies of {BODY >> 20} MiB, {SECONDS:g} seconds.",
        "",
        "| sent | statuses: times | as expected, in one line |",
        "|---|---|---|",
        *(f"| {name} | {counts} | {'yes' if ok else 'NO'} |" for name, counts, ok in refused),
    ]


if __name__ == "__main__":
    main()
