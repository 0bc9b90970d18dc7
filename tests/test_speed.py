"""Prefetching, clock, profile, and model FLOPs of the training loop."""

import threading

import jax
import numpy as np
import pytest

from mmrl.devices import flops
from mmrl.training import clock
from mmrl.training.clock import Clock
from mmrl.training.prefetch import Prefetch
from mmrl.training.profile import Profile
from mmrl.training.step import model_flops
from tests import toys


class Counted:
    """Batches 0, 1, 2, ...; counts how many were taken and can fail at one."""

    def __init__(self, fails_at=None):
        self.taken, self.fails_at = 0, fails_at
        self.changed = threading.Condition()

    def __next__(self):
        with self.changed:
            if self.taken == self.fails_at:
                raise OSError(f"no batch {self.taken}")
            self.taken += 1
            self.changed.notify_all()
            return {"index": np.array([self.taken - 1])}

    def get_state(self):
        return {"global_next_index": self.taken}

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: self.taken >= count, timeout=30)


def put(batch):
    return jax.device_put(dict(batch))


@pytest.mark.parametrize("depth", [2, 4])
def test_batches_are_placed_ahead_in_order_and_not_further_than_asked(depth):
    batches = Counted()
    with Prefetch(batches, put, depth) as feed:
        assert feed.position == {"global_next_index": 0}
        for step in range(5):
            batches.wait_for(step + depth)
            batch = next(feed)
            assert int(batch.arrays["index"][0]) == batch.rows[0] == step
            assert isinstance(batch.arrays["index"], jax.Array)
            # The position is that of the training, however far the thread has run.
            assert feed.position == {"global_next_index": step + 1}
        batches.wait_for(5 + depth)
    assert batches.taken <= 5 + depth


def test_errors_arrive_after_the_batches_before_them():
    with Prefetch(Counted(fails_at=2), put, 4) as feed:
        assert [next(feed).rows[0], next(feed).rows[0]] == [0, 1]
        with pytest.raises(OSError, match="no batch 2"):
            next(feed)


def test_closing_ends_the_thread_while_the_queue_is_full():
    feed = Prefetch(Counted(), put, 2)
    feed._ready.get()
    feed.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_clock_tells_utilisation_only_of_known_devices(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    timer = Clock(8, step_flops=4 * 10**15, devices=4, device_kind="NVIDIA H200")
    for _ in range(2):
        with timer.waiting():
            spend(1)
        spend(4)
    with timer.excluded():
        spend(1000)
    assert timer.read() == {
        "examples_per_second": 1.6,
        "data_wait_share": 0.2,
        "seconds_per_step": 5.0,
        "flops_per_second": 2e14,
        "model_flops_utilization": 2e14 / 989e12,
    }
    assert (
        "model_flops_utilization" not in Clock(8, step_flops=1, devices=1, device_kind="cpu").read()
    )


def test_profile_traces_the_steps_it_was_asked_for(tmp_path):
    profile = Profile(tmp_path, start=5, skip=1, steps=2)
    said = {}
    for step in range(6, 11):
        profile.before(step, ())
        said[step] = profile.after(step, jax.numpy.ones(3) * step)
    folder = tmp_path / "profile"
    assert said == {6: "", 7: "", 8: f"profile: steps 7 to 8 in {folder}", 9: "", 10: ""}
    assert list(folder.rglob("*.xplane.pb"))
    assert profile.close() == ""


def test_profile_says_when_training_was_too_short(tmp_path):
    profile = Profile(tmp_path, start=0, skip=10, steps=2)
    profile.before(1, ())
    assert profile.close() == "no profile: training ended before step 11, the first to trace"
    assert Profile(tmp_path, start=0, skip=0, steps=0).close() == ""


def counted(**changes):
    config = toys.config(**changes)
    (batch,) = toys.batches(config)
    return model_flops(config, toys.one_device(), batch)


@pytest.mark.exhaustive
def test_model_flops_do_not_depend_on_what_saves_memory():
    plain = counted()
    assert plain > 0
    assert counted(gradient_cache=2) == plain
    assert counted(towers__image__remat="full", towers__text__remat="dots") == plain
    local = {"objectives__local_contrastive__implementation": "chunked"}
    assert counted(**local) == plain


@pytest.mark.exhaustive
def test_frozen_encoders_cost_no_backward_pass():
    rules = ({"match": "towers/image/encoder/.*", "freeze": True}, {"match": ".*"})
    plain, frozen = counted(), counted(optimizer__rules=rules)
    assert frozen < plain
    assert flops.peak("cpu") is None
