"""The quick way to random numbers gives the numbers of NumPy's generators, bit by bit."""

import pickle
import threading

import numpy as np
import pytest

from mmrl.data.draws import uniforms
from mmrl.data.example import Draw, Seeds

EDGES = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("count", [1, 10])
def test_numbers_are_those_of_a_generator_for_each_seed(count):
    drawn = np.random.default_rng(0).integers(2**63, size=300).tolist()
    for seeds in (EDGES, drawn, drawn[:1]):
        made = uniforms(seeds, count)
        assert made.shape == (len(seeds), count)
        for row, seed in zip(made, seeds, strict=True):
            np.testing.assert_array_equal(row, np.random.default_rng(seed).random(count))
    assert uniforms([], count).shape == (0, count)


def expected(seed: int, position: int) -> Draw:
    key = np.random.Philox(seed).state["state"]["key"]
    stream = np.random.Philox(key=key, counter=[0, 0, 0, position])
    return Draw(*(number >> 1 for number in stream.random_raw(3).tolist()))


def test_draws_of_positions_are_those_of_a_stream_for_each():
    positions = [0, 1, 2, 7, 5, 2**32, 2**63 - 1, *range(100, 200)]
    for seed in (0, 3, 2**40):
        seeds = Seeds(seed)
        assert [seeds(n) for n in positions] == [expected(seed, n) for n in positions]
        sent = pickle.loads(pickle.dumps(seeds))
        assert [sent(n) for n in positions] == [expected(seed, n) for n in positions]


def test_threads_do_not_disturb_each_others_draws():
    seeds, wrong = Seeds(1), []
    known = [expected(1, n) for n in range(500)]

    def draw() -> None:
        wrong.extend(n for _ in range(10) for n in range(500) if seeds(n) != known[n])

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
