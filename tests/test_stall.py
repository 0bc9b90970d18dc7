"""A pipeline that does not deliver says where it is stuck, in threads and in worker processes."""

import pickle
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data import stall
from mmrl.data.corpus import read_corpus
from mmrl.training.prefetch import Prefetch
from mmrl.types import InputError
from tests import toys


class Blocking(toys.ToySource):
    """Reading the image of record 5 takes until a file is there."""

    def __init__(self, gate: Path) -> None:
        super().__init__(16)
        self.gate = gate

    def image(self, index: int, number: int = 0) -> np.ndarray:
        while index == 5 and not self.gate.exists():
            time.sleep(0.01)
        return toys.noise(index)


def feed(gate, workers, late, patience=0.3):
    corpus = read_corpus("toy/train", Blocking(gate), sections=("findings",))
    batches = toys.feed(toys.config(data__num_workers=workers, batch_size=16), corpus)
    return batches, Prefetch(batches, lambda batch: dict(batch), 2, patience=patience, late=late)


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [0, 1])
def test_a_blocked_read_is_named_with_its_record_and_time(tmp_path, workers):
    said = []
    batches, ahead = feed(tmp_path / "gate", workers, said.append)
    try:
        wait_until(lambda: "read of record toy:5" in batches.whereabouts())
        taken = threading.Thread(target=lambda: next(ahead))
        taken.start()
        wait_until(lambda: said)
        assert re.fullmatch(r"read of record toy:5 for \d+ s", said[0])
        (tmp_path / "gate").touch()
        taken.join(60)
        assert not taken.is_alive() and len(said) == 1
    finally:
        (tmp_path / "gate").touch()
        ahead.close()
        batches.close()


def test_a_batch_in_time_is_no_stall(tmp_path):
    (tmp_path / "gate").touch()
    said = []
    batches, ahead = feed(tmp_path / "gate", 0, said.append, patience=30)
    next(ahead), next(ahead)
    ahead.close()
    batches.close()
    assert not said


def test_a_board_knows_the_longest_stage_of_all_threads():
    board = stall.Board()
    board.mark(stall.PERTURB, 3)
    time.sleep(0.05)
    other = threading.Thread(target=pickle.loads(pickle.dumps(board)).mark, args=(stall.READ, 9))
    other.start()
    other.join()
    first, second = board.places()
    assert (first.stage, first.record) == (stall.PERTURB, 3)
    assert (second.stage, second.record) == (stall.READ, 9)
    assert first.seconds > second.seconds >= 0 and first.seconds > 0.04
    board.mark(stall.IDLE, 0)
    assert [place.stage for place in board.places()] == [stall.READ]
    board.clear()
    assert board.places() == []


def test_marking_is_cheap():
    board = stall.Board()
    began = time.process_time()
    for index in range(10_000):
        board.mark(stall.READ, index)
    assert (time.process_time() - began) / 10_000 < 50e-6  # about one microsecond when idle


def test_a_wait_is_told_once_and_only_when_long():
    told = []
    with stall.watch(0.05, lambda: told.append(1)):
        wait_until(lambda: told)
        time.sleep(0.1)
    with stall.watch(5, lambda: told.append(2)):
        pass
    assert told == [1]


def test_patience_must_be_positive():
    with pytest.raises(InputError, match=r"stall_seconds=0.0 must be above 0"):
        configs.validate(toys.config(data__stall_seconds=0))
