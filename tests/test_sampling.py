"""Balanced groups, balanced classes and subsets by ids."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data import sampling
from mmrl.data.batches import sequence
from mmrl.data.corpus import read_corpus
from mmrl.data.labels import Policy
from mmrl.data.sampling import NONE, of_classes, of_keys
from mmrl.training.draw import training_rows
from mmrl.types import InputError
from tests import toys

SIZES = {"a": 5, "b": 12, "c": 20, "d": 31}


@dataclasses.dataclass
class Sized:
    """The part of a corpus that the order of training needs."""

    count: int
    weights: tuple | None = None
    name: str = "toy/train"

    def __len__(self):
        return self.count


def groups(members=1, sizes=SIZES):
    """Groups of the given sizes, their examples in a mixed order."""
    keys = np.repeat(list(sizes), list(sizes.values()))
    return of_keys(np.random.default_rng(0).permutation(keys).tolist(), members)


def drawn_by(chosen, count, *, seed=3, batch_size=8, start=0, rows=None):
    order = sequence.order(Sized(len(chosen.of)), seed, batch_size, rows, chosen)
    return [order(position) for position in range(start, start + count)]


@pytest.mark.parametrize("members", [1, 2, 4])
def test_every_round_has_every_group_once(members):
    chosen = groups(members)
    taken = chosen.of[drawn_by(chosen, 50 * 4 * members)].reshape(50, 4, members)
    assert (taken == taken[:, :, :1]).all()  # the members of a turn are of one group
    assert (np.sort(taken[:, :, 0], axis=1) == np.arange(4)).all()
    assert len({tuple(one) for one in taken[:, :, 0].tolist()}) > 10  # in many orders


@pytest.mark.parametrize("members", [1, 2, 4])
def test_every_group_has_epochs_of_its_own(members):
    chosen = groups(members)
    taken = np.array(drawn_by(chosen, 4 * 200))
    for number, name in enumerate(chosen.names):
        size = SIZES[name]
        own = taken[chosen.of[taken] == number]
        length = size // members * members
        epochs = [own[at : at + length] for at in range(0, len(own) - length + 1, length)]
        assert len(epochs) > 1
        for epoch in epochs:
            assert len(set(epoch.tolist())) == length
        assert any((one != two).any() for one, two in itertools.pairwise(epochs))
        if size % members == 0:
            assert all(set(e.tolist()) == set(epochs[0].tolist()) for e in epochs)
        assert set(own.tolist()) == set(np.flatnonzero(chosen.of == number).tolist())


def test_the_order_depends_on_seed_and_position_alone():
    chosen = groups(2)
    whole = drawn_by(chosen, 300)
    assert drawn_by(chosen, 100, start=200) == whole[200:]
    assert drawn_by(chosen, 300, seed=4) != whole
    assert drawn_by(chosen, 8, start=10**12)


@pytest.mark.parametrize("members", [1, 2, 4])
def test_turns_lie_within_a_batch_and_no_batch_of_one_round_repeats(members):
    chosen = groups(members)
    batches = np.array(drawn_by(chosen, 40 * 8)).reshape(40, 8)
    for batch in batches:
        counts = collections.Counter(chosen.of[batch].tolist())
        assert all(count % members == 0 for count in counts.values())
    one_round = np.array(drawn_by(chosen, 40 * 4 * members)).reshape(40, -1)
    assert all(len(set(batch.tolist())) == 4 * members for batch in one_round)


def test_examples_outside_of_the_draw_are_never_drawn():
    chosen = groups(2)
    rows = np.flatnonzero(np.random.default_rng(1).random(len(chosen.of)) < 0.6)
    taken = set(drawn_by(chosen, 600, rows=rows))
    kept = chosen.within(rows)
    assert taken == set(np.flatnonzero(kept.of >= 0).tolist()) <= set(rows.tolist())


def test_groups_that_are_too_small_are_left_out():
    chosen = groups(6).within(np.arange(68))
    assert chosen.names == ("b", "c", "d")
    assert set(np.unique(chosen.of)) == {-1, 0, 1, 2}
    assert np.bincount(chosen.of[chosen.of >= 0]).tolist() == [12, 20, 31]
    again = chosen.within(np.arange(68))
    assert again.names == chosen.names and np.array_equal(again.of, chosen.of)


def test_examples_without_a_key_are_left_out():
    found = of_keys(["x", "", "a", "x"])
    assert found.names == ("a", "x") and found.of.tolist() == [1, -1, 0, 1]


def test_an_example_belongs_to_the_rarest_of_its_classes():
    present = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    found = of_classes(("common", "middle", "rare"), present)
    assert found.names == ("common", "middle", "rare", NONE)
    assert found.of.tolist() == [1, 0, 2, 3, 2, 1]


def test_a_batch_that_would_repeat_a_record_is_refused():
    chosen = groups(1, {"a": 1, "b": 30})
    with pytest.raises(InputError, match=r"group 'a' of .* has 1 usable .* takes 4 of each of 2"):
        drawn_by(chosen, 1)
    with pytest.raises(InputError, match=r"no group of config.data.sampler has 40 examples"):
        drawn_by(groups(40), 1)
    with pytest.raises(InputError, match=r"parts with weights"):
        sequence.order(Sized(68, weights=(1.0, 2.0)), 0, 8, None, groups())


# --- ids -----------------------------------------------------------------------------------------

IDS, PATIENTS = [f"s:{n}" for n in range(6)], ["p", "q", "p", "r", "q", "s"]


def test_a_subset_is_of_examples_or_of_whole_patients(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text("# curated\n\ns:4\n  s:0\n")
    ids = sampling.read_ids(file)
    assert ids == ("s:4", "s:0")
    assert sampling.subset(ids, IDS, PATIENTS, "example").tolist() == [0, 4]
    assert sampling.subset(ids, IDS, PATIENTS, "patient").tolist() == [0, 1, 2, 4]
    with pytest.raises(InputError, match=r'1 ids that no example .* such as "t:1"; ids look like'):
        sampling.subset(("s:1", "t:1"), IDS, PATIENTS, "example")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"#\n", "no id"), (b"a\nb\na\n", '"a" twice'), (b"\xff", "UTF-8")],
)
def test_bad_files_of_ids_are_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "ids.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        sampling.read_ids(file)
    assert message in str(refused.value) and "\n" not in str(refused.value)


# --- runs ----------------------------------------------------------------------------------------


class Sites(toys.ToySource):
    """Studies of three sites, with two labels; every fifth states no site."""

    def __getitem__(self, index):
        site = {} if index % 5 == 4 else {"site": "abc"[index % 3]}
        labels = (int(index % 8 == 0), int(index % 2 == 0))
        return dataclasses.replace(
            super().__getitem__(index),
            patient_id=f"p{index // 2}",
            attributes=site,
            label_names=("rare", "common"),
            labels=labels,
        )


CORPUS = read_corpus("toy/train", Sites(64), sections=("findings",))


def settings(**changes):
    chosen = toys.config(**{f"data__{key}": value for key, value in changes.items()})
    configs.validate(chosen)
    return chosen


def drawn(**changes):
    return training_rows(CORPUS, {}, settings(**changes).data)


def test_a_run_draws_groups_of_its_config():
    assert drawn() is None
    found = drawn(sampler__name="groups", sampler__by="site")
    assert found.groups.names == ("a", "b", "c")
    assert found.rows.tolist() == [n for n in range(64) if n % 5 != 4]
    assert found.facts["left_out_of_groups"] == 12 and found.facts["examples"] == 52
    pairs = drawn(sampler__name="groups", sampler__by="patient", sampler__members=2)
    assert len(pairs.groups.names) == 32 and len(pairs.rows) == 64
    alone = drawn(sampler__name="groups", sampler__by="duplicates")
    assert len(alone.groups.names) == len(set(CORPUS.groups.tolist()))


def test_a_run_draws_classes_of_its_config():
    found = drawn(sampler__name="classes")
    assert found.groups.names == ("rare", "common", NONE)
    assert np.bincount(found.groups.of).tolist() == [8, 24, 32]
    one = drawn(sampler__name="classes", sampler__labels=("rare",))
    assert one.groups.names == ("rare", NONE) and np.bincount(one.groups.of).tolist() == [8, 56]
    values, _ = Policy.from_config(settings().data["label_policy"]).table(
        ("rare",), CORPUS.label_names, CORPUS.labels, what="label"
    )
    assert ((one.groups.of == 0) == (values[:, 0] == 1)).all()
    with pytest.raises(InputError, match=r"label in config.data.sampler.labels 'raer'"):
        drawn(sampler__name="classes", sampler__labels=("raer",))


def test_a_subset_a_fraction_and_groups_go_together(tmp_path):
    file = tmp_path / "ids"
    file.write_text("\n".join(CORPUS.ids[n] for n in range(40)))
    subset = drawn(subset=str(file))
    assert subset.rows.tolist() == list(range(40)) and subset.groups is None
    both = drawn(subset=str(file), train_fraction=0.5, sampler__name="groups", sampler__by="site")
    assert both.facts["patients"] == 10 and both.facts["patients_to_draw_from"] == 20
    rows = both.rows.tolist()
    assert set(rows) <= set(range(40)) and not any(row % 5 == 4 for row in rows)
    other = drawn(subset=str(file), sampler__name="groups", sampler__by="site")
    assert both.facts["sha256"] != other.facts["sha256"]


def test_an_attribute_that_no_record_has_is_refused_with_the_choices():
    with pytest.raises(
        InputError, match=r"attribute config.data.sampler.by=sex; choices: dup.*site"
    ):
        drawn(sampler__name="groups", sampler__by="sex")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler__name": "class"}, "config.data.sampler.name 'class'"),
        ({"subset_by": "study"}, "config.data.subset_by 'study'"),
        ({"sampler__members": 0}, "members=0 must be at least 1"),
        ({"sampler__members": 2}, "expected name=groups or name=classes"),
        ({"sampler__name": "groups", "sampler__members": 3}, "does not divide config.batch_size"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError) as refused:
        settings(**changes)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_batches_do_not_depend_on_who_makes_them_and_resume():
    chosen = toys.without_copies(toys.config(batch_size=8))
    made = of_keys([str(n % 3) for n in range(64)], 2)
    whole = toys.batches(chosen, 6, groups=made)
    order = sequence.order(toys.corpus(), 0, 8, None, made)
    for number, batch in enumerate(whole):
        assert batch["index"].tolist() == [order(number * 8 + row) for row in range(8)]
    later = toys.batches(chosen, 3, start=3, groups=made)
    halves = [np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7])]  # of two processes
    shares = [toys.batches(chosen, 6, groups=made, rows=rows) for rows in halves]
    for name in whole[0]:
        for one, two in zip(whole[3:], later, strict=True):
            np.testing.assert_array_equal(one[name], two[name])
        for rows, share in zip(halves, shares, strict=True):
            for one, two in zip(whole, share, strict=True):
                np.testing.assert_array_equal(one[name][rows], two[name])
