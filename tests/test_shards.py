"""Payloads of shards: what is read of them, and what is said of damaged ones."""

import threading
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mmrl.data import shards
from mmrl.types import InputError
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
    with pytest.raises(InputError, match="/b record 1 cannot be read: .*hash mismatch"):
        shards.load_image(str(damaged), 1, 0)
    np.testing.assert_array_equal(shards.load_image(str(damaged), 2, 1), picture(21))
