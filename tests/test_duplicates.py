"""Near-duplicate search against brute force, and the hash against a float reference."""

import csv
import functools
import itertools
import subprocess
import sys

import cv2
import numpy as np
import pytest
from scipy import fft

from mmrl.data.image import images, readers
from mmrl.data.overlap import duplicates
from mmrl.data.overlap.duplicates import FLAT, NearPairs
from mmrl.data.text import reports
from mmrl.types import InputError
from tests.conftest import ROOT

rng = np.random.default_rng(7)


def picture(seed: int, height: int = 300, width: int = 260) -> np.ndarray:
    """Smooth structure, u8[height, width]: noise of few frequencies."""
    noise = np.random.default_rng(seed).standard_normal((12, 12)).astype(np.float32)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 50 * smooth, 0, 255).astype(np.uint8)


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def found(pairs: NearPairs) -> dict[tuple[int, int], float]:
    listed = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(listed) == len(set(listed))
    assert listed == sorted(listed)
    return dict(zip(listed, pairs.similarity.tolist(), strict=True))


# --- the hash -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_hash_is_the_order_of_dct_coefficients(seed):
    image = picture(seed, 320, 256)  # 10 x 8 pixels a cell: the average by area is a plain mean
    small = image.astype(float).reshape(32, 10, 32, 8).mean(axis=(1, 3))
    low = fft.dctn(small, type=2, norm="ortho")[1:9, 1:9].ravel()
    bits = "".join("1" if value > np.median(low) else "0" for value in low)
    assert duplicates.perceptual_hash(image) == int(bits, 2)
    assert bits.count("1") == 32


def test_hash_does_not_see_scale_of_values_or_pixels():
    image = picture(1)
    wide = cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    expected = duplicates.perceptual_hash(image)
    assert duplicates.perceptual_hash(image.astype(np.uint16) * 257) == expected
    assert duplicates.perceptual_hash(image.astype(np.uint16) * 16) == expected
    assert distance(duplicates.perceptual_hash(wide), expected) <= 2


def test_hash_survives_compression_and_tells_pictures_apart():
    pictures = [picture(seed) for seed in range(12)]
    hashes = [duplicates.perceptual_hash(image) for image in pictures]
    for image, value in zip(pictures, hashes, strict=True):
        small = cv2.resize(image, (128, 148), interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])
        again = images.decode(data.tobytes())
        assert distance(duplicates.perceptual_hash(again), value) <= duplicates.RADIUS
        assert duplicates.pixel_similarity(image, again) > duplicates.SAME_PICTURE
    for (a, one), (b, other) in itertools.combinations(zip(pictures, hashes, strict=True), 2):
        assert distance(one, other) > duplicates.RADIUS
        assert duplicates.pixel_similarity(a, b) < duplicates.SAME_PICTURE
    # Mirrored is another picture: reports speak of left and right.
    assert distance(duplicates.perceptual_hash(pictures[0][:, ::-1]), hashes[0]) > 20


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.full((50, 70), 255, np.uint8),
        np.full((50, 70), 40_000, np.uint16),
        np.full((512, 512), 90, np.uint8) + rng.integers(0, 3, (512, 512), np.uint8),
        rng.integers(0, 256, (1024, 1024), np.uint8),
        np.tile(np.arange(256, dtype=np.uint8), (256, 1)),
        np.ones((1, 1), np.uint8),
    ],
    ids=["black", "white", "grey16", "grain", "noise", "ramp", "pixel"],
)
def test_images_without_structure_are_flat_and_near_to_nothing(image):
    value = duplicates.perceptual_hash(image)
    assert value == FLAT
    hashes = [value, duplicates.perceptual_hash(picture(0)), value]
    assert found(duplicates.near_hashes(hashes)) == {}
    assert found(duplicates.near_hashes(hashes, hashes)) == {(1, 1): 1.0}


def test_hash_is_the_same_in_another_process():
    program = (
        "import numpy as np; from mmrl.data.overlap.duplicates import perceptual_hash as h\n"
        "y, x = np.mgrid[:96, :80]; print(h((x * y % 251 + x // 2).astype(np.uint16)))"
    )
    y, x = np.mgrid[:96, :80]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert outputs == {f"{duplicates.perceptual_hash((x * y % 251 + x // 2).astype(np.uint16))}\n"}


@pytest.mark.parametrize("image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4)), np.zeros(0)])
def test_hash_refuses_what_is_no_image(image):
    with pytest.raises(InputError, match=r"expected uint8 or uint16\[H, W\]"):
        duplicates.perceptual_hash(image)


# --- hashes ---------------------------------------------------------------------------------------


def some_hashes(count: int, seed: int) -> list[int]:
    """Random hashes, and around some of them others at every distance from 1 to 10."""
    draw = np.random.default_rng(seed)
    hashes = [int(value) for value in draw.integers(1, 2**63, count)]
    for base in hashes[:20]:
        for bits in range(1, 11):
            flips = draw.choice(64, bits, replace=False)
            hashes.append(base ^ sum(1 << int(bit) for bit in flips))
    return hashes


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 5, 6, 8])
def test_near_hashes_within_one_list_is_exact(radius):
    hashes = some_hashes(150, radius)
    expected = {
        (i, j): 1 - distance(a, b) / 64
        for (i, a), (j, b) in itertools.combinations(enumerate(hashes), 2)
        if distance(a, b) <= radius
    }
    assert found(duplicates.near_hashes(hashes, radius=radius)) == expected
    assert (radius < 2) or len(expected) > 20


@pytest.mark.parametrize("radius", [0, 3, 4, 7])
def test_near_hashes_between_two_lists_is_exact(radius):
    hashes = some_hashes(150, 40 + radius)
    left, right = hashes[::2], [*hashes[1::2], hashes[4]]
    expected = {
        (i, j): 1 - distance(a, b) / 64
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if distance(a, b) <= radius
    }
    assert found(duplicates.near_hashes(left, right, radius=radius)) == expected
    assert (2, len(right) - 1) in expected


def test_equal_items_stand_behind_their_first():
    # 9 and 11 differ in one bit; 9 stands at 0, 2 and 3, 11 at 1 and 4.
    assert found(duplicates.near_hashes([9, 11, 9, 9, 11], radius=1)) == {
        (0, 1): 63 / 64,
        (0, 2): 1,
        (0, 3): 1,
        (0, 4): 63 / 64,
        (1, 2): 63 / 64,
        (1, 3): 63 / 64,
        (1, 4): 1,
    }
    assert found(duplicates.near_hashes([9, 9], [11, 9, 11], radius=0)) == {(0, 1): 1, (1, 1): 1}


def test_pieces_give_what_one_piece_gives(monkeypatch):
    hashes = some_hashes(100, 3) + [5] * 40
    texts = [" ".join("abcdefgh"[k % 8] for k in range(n, n + 9)) for n in range(40)]
    whole = duplicates.near_hashes(hashes, radius=8), duplicates.near_texts(texts)
    monkeypatch.setattr("mmrl.data.overlap.joins.CHUNK", 7)
    monkeypatch.setattr("mmrl.data.overlap.duplicates.CHUNK", 7)
    again = duplicates.near_hashes(hashes, radius=8), duplicates.near_texts(texts)
    assert list(map(found, again)) == list(map(found, whole))
    assert min(map(len, map(found, whole))) > 30


def test_clusters_are_named_by_their_first_member():
    pairs = NearPairs(np.array([4, 1, 2]), np.array([5, 4, 3]), np.ones(3, np.float32))
    assert duplicates.clusters(7, pairs).tolist() == [0, 1, 2, 2, 1, 1, 6]


def test_empty_lists_have_no_pairs():
    assert found(duplicates.near_hashes([])) == found(duplicates.near_texts([])) == {}
    assert found(duplicates.near_hashes([], [1])) == found(duplicates.near_texts([], ["a"])) == {}


def test_ranges_are_checked():
    with pytest.raises(InputError, match="radius 9; expected 0 to 8"):
        duplicates.near_hashes([1], radius=9)
    with pytest.raises(InputError, match=r"threshold 0\.5; expected 0\.6 to 1"):
        duplicates.near_texts(["a"], threshold=0.5)


# --- texts ----------------------------------------------------------------------------------------


@functools.cache
def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[k : k + 3]) for k in range(len(words) - 2)}


def jaccard(a: str, b: str) -> float:
    """Of canonical texts by plain sets; equal texts without shingles count as 1."""
    sets = shingles(a), shingles(b)
    if not all(sets):
        return float(a == b != "")
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def some_texts(count: int, seed: int) -> list[str]:
    """Texts of 1 to 60 of 30 words, each followed by a copy with up to four words changed."""
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = [f"w{k}" for k in draw.integers(0, 30, draw.integers(1, 60))]
        texts.append(" ".join(words))
        for place in draw.integers(0, len(words), draw.integers(0, 5)):
            words[place] = f"w{draw.integers(0, 30)}"
        texts.append(" ".join(words).upper() + ".")
    return texts


def is_right(pairs: NearPairs, left: list[str], right: list[str] | None, threshold: float) -> None:
    """Holds a search to brute force, and to the rule of equal texts."""
    keys = [[reports.canonical(text) for text in texts] for texts in (left, right or left)]
    expected = {}
    for i, j in itertools.product(*map(range, map(len, keys))):
        first = i == keys[0].index(keys[0][i]) or j == keys[1].index(keys[1][j])
        if right is None and keys[0][i] == keys[0][j]:
            first = i == keys[0].index(keys[0][i])
        similarity = jaccard(keys[0][i], keys[1][j])
        if (right is not None or i < j) and first and similarity >= threshold:
            expected[i, j] = pytest.approx(similarity, abs=1e-6)
    assert found(pairs) == expected
    assert len(expected) >= 8


@pytest.mark.parametrize("threshold", [0.7, 0.8, 1.0])
def test_near_texts_within_one_list(threshold):
    texts = [*some_texts(60, 1), "No effusion.", "no  effusion", "", "...", "effusion no"]
    is_right(duplicates.near_texts(texts, threshold=threshold), texts, None, threshold)


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_near_texts_between_two_lists(threshold):
    texts = some_texts(60, 2)
    left, right = [*texts[::2], "Normal.", ""], [*texts[1::2], "normal", "NORMAL", "", "normal x"]
    pairs = duplicates.near_texts(left, right, threshold=threshold)
    is_right(pairs, left, right, threshold)
    assert {(60, 60), (60, 61)} <= set(found(pairs))


def test_one_changed_word_of_forty_is_near_and_an_inserted_negation_shows_its_similarity():
    words = [f"w{k}" for k in range(40)]
    other = [*words[:20], "not", *words[20:]]
    # 38 and 39 shingles; the two across the insertion go, three come: 36 of 41 are shared.
    assert found(duplicates.near_texts([" ".join(words), " ".join(other)])) == {
        (0, 1): pytest.approx(36 / 41)
    }


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_radiographs_near_duplicates_are_the_three_true_ones(real_data):
    files = sorted((real_data / "covid_cxr" / "images").glob("*.jpg"))
    pictures = [readers.read(path) for path in files]
    hashes = [duplicates.perceptual_hash(image) for image in pictures]
    assert FLAT not in hashes
    for image, value in zip(pictures, hashes, strict=True):
        scale = 256 / max(image.shape)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])
        again = images.decode(data.tobytes())
        assert distance(duplicates.perceptual_hash(again), value) <= 2
        assert duplicates.pixel_similarity(image, again) > 0.996
    near = duplicates.near_hashes(hashes)
    named = [(files[i].stem, files[j].stem) for i, j in found(near)]
    assert named == [("0142", "0151"), ("0143", "0152"), ("0171", "0172")]
    for i, j in found(near):
        assert np.array_equal(pictures[i], pictures[j])
    wider = found(duplicates.near_hashes(hashes, radius=8))
    assert len(wider) == 7  # four pairs of different patients at 6 and 8 bits
    different = [duplicates.pixel_similarity(pictures[i], pictures[j]) for i, j in wider]
    assert (
        sorted(value > duplicates.SAME_PICTURE for value in different) == [False] * 4 + [True] * 3
    )


@pytest.mark.real_data
def test_openi_reports_against_brute_force(real_data):
    with open(real_data / "openi" / "indiana_reports.csv", encoding="utf-8", newline="") as file:
        texts = [f"{row['findings']} {row['impression']}" for row in csv.DictReader(file)]
    is_right(duplicates.near_texts(texts[:300]), texts[:300], None, 0.8)
