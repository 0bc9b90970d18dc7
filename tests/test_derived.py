"""Derived inputs: patches and tokens that are removed, and that draws depend on the row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.context import Context
from mmrl.models.derived.attended_patches import AttendedPatches
from mmrl.models.derived.described_patches import DescribedPatches
from mmrl.models.derived.hidden_patches import HiddenPatches, hidden_blocks
from mmrl.models.derived.masked_tokens import MaskedTokens
from mmrl.models.derived.patches import keep_lowest
from mmrl.models.derived.random_patches import RandomPatches
from mmrl.models.derived.stain_jitter import StainJitter
from mmrl.types import InputError
from tests.arrays import unit

B, L, VOCABULARY = 6, 40, 50
OF_TOWER = {"vocab_size": VOCABULARY, "mask_token": 4, "special_tokens": (0, 1, 2, 3, 4)}


def context(seed=0):
    """Of training, or of evaluation where there is no seed."""
    return Context(jnp.int32(0), None if seed is None else jax.random.key(seed))


def derive(module, given=None, rows=slice(None), seed=0, **arrays):
    """The arrays that a module makes of some rows."""
    index = np.arange(B, dtype=np.int32)[rows]
    given = {name: x[rows] for name, x in (given or {}).items()}
    arrays = {name: x[rows] for name, x in arrays.items()} or {"index": index}
    found = module(context=context(seed), given=given, **arrays)
    return {name: np.asarray(x) for name, x in found.items()}


def images(height=16, width=24):
    return {"pixels": np.zeros((B, height, width, 1), np.uint8)}


def stained(*crops):
    shape = (B, *crops, 5, 7, 3)
    return {"pixels": np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)}


def texts():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, L + 1, B)
    mask = np.arange(L)[None] < lengths[:, None]
    tokens = np.where(mask, rng.integers(5, VOCABULARY, (B, L)), 0).astype(np.int32)
    tokens[:, 0], tokens[np.arange(B), lengths - 1] = 2, 3
    starts = (rng.random((B, L)) < 0.4) & mask
    starts[:, :2] = True
    return {"tokens": tokens, "mask": mask, "starts": starts, "entities": rng.random((B, L)) < 0.5}


def test_the_lowest_scores_are_kept():
    scores = np.array([[3, 1, 2, 5, 4], [1, 1, 1, 1, 1]], np.float32)
    found = keep_lowest(jnp.asarray(scores), 0.5)
    np.testing.assert_array_equal(found["kept"], [[1, 2], [0, 1]])
    removed = [[True, False, False, True, True], [False, False, True, True, True]]
    np.testing.assert_array_equal(found["mask"], removed)
    assert found["kept"].dtype == np.int32


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("share", "kept"), [(0.75, 6), (0.5, 12), (0.0, 24), (0.9, 2)])
def test_a_share_of_the_patches_is_kept(share, kept):
    found = derive(RandomPatches(patch_size=4, share=share), images())
    assert found["kept"].shape == (B, kept) and found["mask"].shape == (B, 24)
    assert (np.diff(found["kept"]) > 0).all()
    for places, mask in zip(found["kept"], found["mask"], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(~mask), places)
    assert share == 0 or len({tuple(row) for row in found["kept"].tolist()}) == B


def test_every_patch_is_kept_equally_often():
    module = RandomPatches(patch_size=4, share=0.75)
    index = np.arange(4000, dtype=np.int32)
    given = {"pixels": np.zeros((4000, 16, 24, 1), np.uint8)}
    removed = np.asarray(module(context=context(), given=given, index=index)["mask"]).mean(axis=0)
    # Four standard deviations of a share of 4000 draws.
    assert (np.abs(removed - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)).all()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("module", "given"),
    [
        (RandomPatches(patch_size=4), images()),
        (HiddenPatches(patch_size=4), images()),
        pytest.param(
            HiddenPatches(patch_size=4, shape="blocks"), images(), marks=pytest.mark.exhaustive
        ),
        (MaskedTokens(**OF_TOWER), texts()),
        (StainJitter(strength=0.3), stained()),
    ],
    ids=["patches", "hidden", "blocks", "tokens", "stains"],
)
def test_draws_depend_on_the_row_alone(module, given):
    whole = derive(module, given)
    for rows in (slice(0, 2), slice(3, None), slice(None, None, -1)):
        for name, part in derive(module, given, rows).items():
            np.testing.assert_array_equal(part, whole[name][rows])
    drawn = next(name for name in ("kept", "hidden", "tokens", "pixels") if name in whole)
    assert (derive(module, given, seed=1)[drawn] != whole[drawn]).any()
    for name, x in derive(module, given, seed=None).items():
        np.testing.assert_array_equal(x, derive(module, given, seed=None)[name])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("form", ["patches", "blocks"])
def test_images_and_crops_hide_patches_as_often_and_as_many_as_stated(form):
    index, crops = np.arange(1500, dtype=np.int32), 2
    module = HiddenPatches(patch_size=4, probability=0.5, shares=(0.1, 0.5), shape=form)
    for shape in ((1500, 16, 24, 1), (1500, crops, 16, 24, 1)):
        given = {"pixels": np.zeros(shape, np.uint8)}
        hidden = np.asarray(module(context=context(), given=given, index=index)["hidden"])
        assert hidden.shape == (*shape[:-3], 24)
        numbers = hidden.sum(axis=-1).reshape(-1)
        count, some = len(numbers), numbers > 0
        assert abs(some.mean() - 0.5) < 4 * np.sqrt(0.25 / count)
        # floor(24 share) for a share from 0.1 to 0.5: 2 to 11, each but the first alike.
        assert set(numbers[some].tolist()) == set(range(2, 12))
        places = hidden.reshape(-1, 24)[some]
        expected = numbers[some].mean() / 24
        if module.in_blocks:  # a rectangle covers the centre more often than a corner
            assert abs(places.mean() - expected) < 1e-6 and places.mean(axis=0).min() > 0.1
        else:
            assert (np.abs(places.mean(axis=0) - expected) < 5 * np.sqrt(0.25 / len(places))).all()
    assert (hidden[:, 0] != hidden[:, 1]).any(axis=1).mean() > 0.5  # crops have draws of their own
    one = HiddenPatches(patch_size=8, probability=1.0, shares=(0.0, 0.0))
    assert (derive(one, images())["hidden"].sum(axis=1) == 1).all()


def test_blocks_are_rectangles_of_exactly_as_many_patches():
    grid, count = (8, 12), 400
    numbers = jnp.asarray(np.random.default_rng(0).integers(0, 49, count), jnp.int32)
    keys = jax.random.split(jax.random.key(0), count)
    found = np.asarray(jax.vmap(lambda key, n: hidden_blocks(key, grid, n))(keys, numbers))
    np.testing.assert_array_equal(found.sum(axis=1), numbers)
    alone = jax.vmap(lambda key, n: jax.random.permutation(key, 96) < n)(keys, numbers)

    def neighbours(hidden):
        """Share of pairs of neighbours of which both are hidden, among the hidden patches."""
        maps = np.asarray(hidden).reshape(-1, *grid)
        pairs = (maps[:, 1:] & maps[:, :-1]).sum() + (maps[:, :, 1:] & maps[:, :, :-1]).sum()
        return pairs / maps.sum()

    assert neighbours(found) > 1.4 > 1.1 > neighbours(alone)


def test_amounts_of_stains_are_scaled_and_shifted():
    """In float64: the changed density is linear in that of the stains, with one law per crop."""
    pixels = stained(2)["pixels"]
    still = derive(StainJitter(strength=0.0), {"pixels": pixels})
    np.testing.assert_array_equal(still["pixels"], pixels)
    found = derive(StainJitter(strength=0.2), {"pixels": pixels})["pixels"]
    assert found.shape == pixels.shape and found.dtype == np.uint8
    absorbed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    absorbed /= np.sqrt((absorbed**2).sum(axis=1))[:, None]
    laws = []
    for key in jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(B)):
        drawn = jax.random.uniform(key, (2, 2, 1, 1, 3), minval=-0.2, maxval=0.2)
        laws.append(np.asarray(drawn, np.float64))
    factor, addend = np.stack(laws, axis=1)
    amount = -np.log((pixels + 1.0) / 256) @ np.linalg.inv(absorbed) * (1 + factor) + addend
    expected = np.clip(256 * np.exp(-amount @ absorbed) - 1, 0, 255)
    assert np.abs(found - expected).max() < 0.501
    assert np.abs(addend).max() > 0.15 and (addend[:, 0] != addend[:, 1]).all()


def test_patches_that_the_text_describes_are_removed():
    regions, text = unit(B, 8, 5), unit(B, 5, seed=1)
    cosines = np.einsum("bpd,bd->bp", regions.astype(np.float64), text.astype(np.float64))
    for remove, order in (("most", cosines), ("least", -cosines)):
        module = DescribedPatches(share=0.25, remove=remove)
        found = derive(module, regions=regions * 3, text=text * 2)
        expected = np.sort(order.argsort(axis=1)[:, :6], axis=1)
        np.testing.assert_array_equal(found["kept"], expected)
    with pytest.raises(ValueError, match=r"regions must be \[B, P, D\]"):
        derive(module, regions=regions, text=text[:, :3])


def test_patches_that_are_attended_to_are_removed():
    attention = np.random.default_rng(0).random((B, 3, 8)).astype(np.float32)
    found = derive(AttendedPatches(share=0.5), attention=attention)
    mean = attention.astype(np.float64).mean(axis=1)
    np.testing.assert_array_equal(found["kept"], np.sort(mean.argsort(axis=1)[:, :4], axis=1))
    least = derive(AttendedPatches(share=0.5, remove="least"), attention=attention)
    np.testing.assert_array_equal(least["mask"], ~found["mask"])


def test_chosen_tokens_have_targets_and_others_stay():
    given = texts()
    found = derive(MaskedTokens(**OF_TOWER, share=0.5), given)
    chosen = found["target"] >= 0
    tokens = given["tokens"]
    np.testing.assert_array_equal(found["target"][chosen], tokens[chosen])
    np.testing.assert_array_equal(found["tokens"][~chosen], tokens[~chosen])
    assert given["mask"][chosen].all() and (tokens[chosen] >= 5).all()
    assert found["tokens"].dtype == found["target"].dtype == np.int32
    assert chosen.any() and (found["tokens"][chosen] == 4).any()


def test_tokens_are_hidden_in_the_shares_of_bert():
    count = 2000
    given = {"tokens": np.full((count, L), 7, np.int32), "mask": np.ones((count, L), bool)}
    module = MaskedTokens(**OF_TOWER, share=0.15)
    index = np.arange(count, dtype=np.int32)
    found = module(context=context(), given=given, index=index)
    chosen = np.asarray(found["target"]) >= 0
    shown = np.asarray(found["tokens"])[chosen]
    # A random token is a special one in 5 of 50 draws, or the former one in 1; it then stays.
    hidden, other = (shown == 4).mean(), ((shown != 4) & (shown != 7)).mean()
    assert abs(chosen.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / (count * L))
    assert abs(hidden - 0.8) < 4 * np.sqrt(0.8 * 0.2 / len(shown))
    assert abs(other - 0.1 * 44 / 50) < 4 * np.sqrt(0.1 * 0.9 / len(shown))
    assert shown.min() >= 4 and set(shown) == set(range(4, VOCABULARY))


def test_words_are_chosen_whole():
    given = texts()
    module = MaskedTokens(**OF_TOWER, share=0.4, words="starts")
    chosen = derive(module, given)["target"] >= 0
    for row in range(B):
        word = np.cumsum(given["starts"][row]) - 1
        may = given["mask"][row] & (given["tokens"][row] >= 5)
        for one in set(word[may].tolist()):
            assert len(set(chosen[row, may & (word == one)].tolist())) == 1
    assert chosen.any() and (chosen != (given["mask"] & (given["tokens"] >= 5))).any()


def test_only_tokens_of_entities_are_chosen():
    given = texts()
    module = MaskedTokens(**OF_TOWER, share=0.9, among="entities")
    chosen = derive(module, given)["target"] >= 0
    assert chosen.any() and given["entities"][chosen].all()
    with pytest.raises(InputError, match="among 'entity' is no array of the input; choices: ent"):
        derive(MaskedTokens(**OF_TOWER, among="entity"), given)


def test_spans_are_chosen_whole():
    count = 500
    spans = np.full((count, 4, 2), -1, np.int32)
    spans[:, 0], spans[:, 1], spans[:, 2] = (3, 5), (4, 7), (10, 11)
    tokens = np.full((count, L), 7, np.int32)
    tokens[:, 10] = 3  # a special token
    given = {"tokens": tokens, "mask": np.ones((count, L), bool), "spans": spans}
    module = MaskedTokens(**OF_TOWER, share=0.5, spans="spans")
    index = np.arange(count, dtype=np.int32)
    chosen = np.asarray(module(context=context(), given=given, index=index)["target"]) >= 0
    assert not chosen[:, [0, 1, 2, *range(7, L)]].any()
    first, second = chosen[:, 3], chosen[:, 6]
    np.testing.assert_array_equal(chosen[:, 4], first | second)
    np.testing.assert_array_equal(chosen[:, 5], second)
    for one in (first, second):
        assert abs(one.mean() - 0.5) < 4 * np.sqrt(0.25 / count)
    assert abs((first & second).mean() - 0.25) < 4 * np.sqrt(0.19 / count)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HiddenPatches(patch_size=4, shares=(0.5, 0.1)), "two ascending numbers"),
        (lambda: HiddenPatches(patch_size=4, probability=1.5), "probability 1.5"),
        (lambda: HiddenPatches(patch_size=None), "the encoder has no patches"),
        (lambda: HiddenPatches(patch_size=4, shape="lines"), "choices: patches, blocks"),
        (lambda: MaskedTokens(**OF_TOWER, words="a", spans="b"), "spans 'b'; expected one"),
        (lambda: RandomPatches(patch_size=4, share=1.0), "share 1.0; expected at least 0"),
        (lambda: AttendedPatches(remove="all"), "unknown remove 'all'; choices: most, least"),
        (lambda: MaskedTokens(**{**OF_TOWER, "mask_token": None}), "no mask token"),
        (lambda: RandomPatches(patch_size=None), "the encoder has no patches"),
        (lambda: derive(RandomPatches(patch_size=5), images()), "multiples of patch_size 5"),
        (lambda: StainJitter(strength=1.0), "strength 1.0; expected at least 0"),
        (lambda: derive(StainJitter(), images()), "images of 1 channel; expected 3"),
        (lambda: derive(RandomPatches(patch_size=8, share=0.9), images()), "keeps a patch"),
    ],
)
def test_wrong_options_say_what_is_expected(make, message):
    with pytest.raises(InputError, match=message):
        make()
