"""Payloads of shards: what is read of them, and what is said of damaged ones."""

import dataclasses
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mmrl.data.image.masks import Mask
from mmrl.data.reading import shards
from mmrl.types import Box, InputError
from tests.toy_corpora import picture, record, stored


def written(path: Path, payloads: list[bytes]) -> str:
    writer = ArrayRecordWriter(str(path), shards.WRITER_OPTIONS)
    for payload in payloads:
        writer.write(payload)
    writer.close()
    return str(path)


def payload(number: int) -> bytes:
    images = [stored(f"{number}-{k}", picture(10 * number + k)) for k in range(1 + number % 3)]
    return shards.pack_payload(record(str(number)), images)


def test_every_record_of_a_shard_is_found_at_its_position_from_any_thread(tmp_path):
    path = written(tmp_path / "a", [payload(number) for number in range(20)])
    wrong = []

    def read(first: int) -> None:
        for number in range(first, 20, 4):
            content = shards.read_payload(path, number)
            if content["id"] != f"toy:{number}" or len(content["images"]) != 1 + number % 3:
                wrong.append(number)
            last = number % 3
            if not np.array_equal(
                shards.load_image(path, number, last), picture(10 * number + last)
            ):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("position", [-2, -1, 3])
def test_a_position_outside_the_shard_is_refused(tmp_path, position):
    """Never answered by another record, as a range that begins below 0 would be."""
    path = written(tmp_path / "a", [payload(number) for number in range(3)])
    for read in (shards.read_payload, lambda *place: shards.load_image(*place, 0)):
        with pytest.raises(InputError, match=rf"/a record {position} cannot be read: "):
            read(path, position)


def test_damage_inside_a_shard_is_noticed(tmp_path):
    path = written(tmp_path / "a", [payload(number) for number in range(3)])
    data = bytearray(Path(path).read_bytes())
    place = data.index(stored("1-0", picture(10)).data) + 100
    data[place] ^= 255
    damaged = tmp_path / "b"
    damaged.write_bytes(data)
    with pytest.raises(InputError, match=r"/b record 1 cannot be read: .*hash mismatch"):
        shards.load_image(str(damaged), 1, 0)
    np.testing.assert_array_equal(shards.load_image(str(damaged), 2, 1), picture(21))


def test_an_image_is_that_of_the_whole_payload(tmp_path):
    one = dataclasses.replace(record("x"), boxes=(Box((0, 0, 1, 1), "mass"),))
    deep = np.arange(96 * 80, dtype=np.uint16).reshape(96, 80) * 8
    held = [stored("p", picture(0)), stored("q", deep), stored("r", picture(2, 50, 70))]
    masks = [Mask("lung", 192, 160, (0, 4))]
    path = written(tmp_path / "a", [shards.pack_payload(one, held, masks)])
    content = shards.read_payload(path, 0)
    for number, expected in enumerate((picture(0), deep, picture(2, 50, 70))):
        image = shards.load_image(path, 0, number)
        assert image.dtype == expected.dtype
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(shards.decode_image(content["images"][number]), expected)
    for number in (-1, 3):
        with pytest.raises(InputError, match=rf"/a record 0.* no image {number}; the record has 3"):
            shards.load_image(path, 0, number)


def test_what_is_no_payload_is_refused_with_its_place(tmp_path):
    whole = msgpack.unpackb(payload(0))
    (fields,) = whole["images"]
    bad = {
        "damaged record: ": [
            b"\xc1",
            msgpack.packb([1, 2]),
            msgpack.packb({k: v for k, v in whole.items() if k != "images"}),
            msgpack.packb(whole | {"images": [fields[:3]]}),
            msgpack.packb(whole | {"images": [7]}),
            msgpack.packb(whole | {"images": 7}),
        ],
        "a record of schema 'mmrl-0'; expected 'mmrl-2'": [msgpack.packb({"mark": "mmrl-0"})],
        "image '0-0' cannot be decoded": [
            msgpack.packb(whole | {"images": [[fields[0], content, *fields[2:]]]})
            for content in (b"", b"no image", fields[1][:40])
        ]
        + [msgpack.packb(whole | {"images": [[*fields[:2], 97, *fields[3:]]]})],
    }
    for message, payloads in bad.items():
        for number, data in enumerate(payloads):
            path = written(tmp_path / f"{message[:6]}{number}", [data])
            with pytest.raises(InputError, match=f" record 0: .*{message}"):
                shards.load_image(path, 0, 0)
