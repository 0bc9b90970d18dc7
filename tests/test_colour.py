"""Colour from the decoder to the tower: the same pixels, whichever way they take."""

import functools
import io
import json

import cv2
import numpy as np
import PIL.Image
import pytest

from mmrl.data.corpus import read_corpus
from mmrl.data.image import channels, dicom_pixels, images, readers
from mmrl.data.image.jitter import Jitter
from mmrl.data.image.load import Load
from mmrl.data.inputs.image import Image
from mmrl.data.overlap.duplicates import perceptual_hash
from mmrl.data.phantom import tiles
from mmrl.data.reading import shards
from mmrl.data.sources.mixture import Mixture
from mmrl.data.sources.prepared import Prepared
from mmrl.data.sources.stained_tiles import StainedTiles
from mmrl.data.sources.table import Table
from mmrl.preparation import survey
from mmrl.preparation.holdings import Holdings
from mmrl.preparation.job import Settings, prepare
from mmrl.preparation.storage import Storage
from mmrl.training import run
from mmrl.types import ImageRef, InputError, Record
from tests import commands, dicoms

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (23, 31, 3), np.uint8)
GREY = RGB[..., 0].copy()
DATA = {
    "colour": "as_stored",
    "load_size": 0,
    "resize": "pad",
    "crop_scale": (1.0, 1.0),
    "aspect": (0.9, 1.1),
    **dict.fromkeys(("translate", "rotate", "brightness", "contrast", "gamma"), 0.0),
    "cache_images": True,
    "cache_mib": 1,
}


class Held:
    """Two records with one image each."""

    def __init__(self, *given: np.ndarray, channels: int = 1) -> None:
        self.given, self.rejects, self.total, self.channels = given, [], len(given), channels

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Record:
        image = ImageRef(str(index), functools.partial(np.copy, self.given[index]))
        text = {"report": f"number {index}"}
        return Record(str(index), "held", "p", f"s{index}", "p", "val", (image,), text)


def corpus(*given: np.ndarray, channels: int = 1):
    source = Held(*given, channels=channels)
    return read_corpus("held/val", source, sections=("report",))


def read(held, *, channels: int, colour: str, **data) -> np.ndarray:
    """The pixels of all examples, as a tower gets them."""
    from mmrl.data.inputs.base import Place, Rows

    own = Image("image", {"size": 16, "channels": channels}, {**DATA, "colour": colour, **data})
    reader = own.open(Place(held))
    found = reader(Rows(list(range(len(held))), 0, np.zeros(len(held), np.uint64)), {})["pixels"]
    assert found.shape == (len(held), *own.shapes()["pixels"][0]) and found.dtype == np.uint8
    return found


# --- one channel is what it would be alone


@pytest.mark.parametrize("resize", images.RESIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [8, 64])
def test_every_channel_is_prepared_as_a_grey_image(resize, dtype, size):
    image = RGB.astype(dtype) * (257 if dtype == np.uint16 else 1)
    preprocess = images.Preprocess(size, resize)
    whole = preprocess(image)
    apart = [preprocess(image[..., c]) for c in range(3)]
    np.testing.assert_array_equal(whole, np.stack(apart, axis=2))
    part = preprocess(image, np.empty((5, 4, 3), np.uint8), (2, 1))
    np.testing.assert_array_equal(part, whole[2:7, 1:5])


MOVES = {"crop_scale": (0.5, 1.0), "translate": 0.1, "rotate": 20.0}
LIGHT = {"brightness": 0.3, "contrast": 0.4, "gamma": 0.5}


@pytest.mark.parametrize(
    "options",
    [{"size": 16, **MOVES}, {"crop_scale": (0.4, 0.8), "size": 16}, {"size": 20}],
    ids=["warp", "cut", "window"],
)
def test_jitter_moves_all_channels_alike(options):
    square = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    jitter = Jitter(**options)
    whole = jitter(square, np.random.default_rng(1))
    apart = [jitter(square[..., c].copy(), np.random.default_rng(1)) for c in range(3)]
    np.testing.assert_array_equal(whole, np.stack(apart, axis=2))


@pytest.mark.parametrize("light", [LIGHT, {"contrast": 0.5}], ids=["gamma", "contrast"])
def test_jitter_lights_all_channels_by_one_table_about_their_common_mean(light):
    square = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    jitter = Jitter(**light)
    drawn = np.random.default_rng(2).random(10)
    found = jitter.apply(square, drawn.tolist(), np.empty_like(square))
    levels = square.astype(np.float64)
    levels = 255 * (levels / 255) ** ((1 + light.get("gamma", 0)) ** (2 * drawn[9] - 1))
    levels *= 1 + (2 * drawn[7] - 1) * light.get("brightness", 0)
    slope = 1 + (2 * drawn[8] - 1) * light["contrast"]
    expected = np.clip((levels - levels.mean()) * slope + levels.mean(), 0, 255)
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-9)
    grey = square[..., :1].repeat(3, axis=2)
    alone = jitter.apply(grey[..., 0].copy(), drawn.tolist(), np.empty((16, 16), np.uint8))
    np.testing.assert_array_equal(
        jitter.apply(grey, drawn.tolist(), np.empty_like(grey)), alone[..., None].repeat(3, 2)
    )


# --- what a tower sees of a corpus


def test_towers_read_what_the_corpus_has_or_what_colour_asks_for():
    grey, rgb = corpus(GREY, GREY), corpus(RGB, RGB, channels=3)
    own = images.Preprocess(16)
    one, three = read(grey, channels=1, colour="as_stored"), read(rgb, channels=3, colour="rgb")
    np.testing.assert_array_equal(one[0, ..., 0], own(GREY))
    np.testing.assert_array_equal(three[0], own(RGB))
    np.testing.assert_array_equal(read(rgb, channels=3, colour="as_stored"), three)
    np.testing.assert_array_equal(read(grey, channels=3, colour="rgb"), one.repeat(3, axis=3))
    luma = own(cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY))
    np.testing.assert_array_equal(read(rgb, channels=1, colour="grey")[1, ..., 0], luma)
    np.testing.assert_array_equal(
        read(rgb, channels=3, colour="grey")[1], luma[..., None].repeat(3, 2)
    )


@pytest.mark.parametrize(
    ("stored", "tower", "colour", "message"),
    [
        (3, 1, "as_stored", "config.data.colour=as_stored: held has images of 3 channels, but .*"
         r"image.channels=1; set config.data.colour=grey, or config.towers.image.channels=3"),
        (1, 3, "as_stored", "images of 1 channel, but config.towers.image.channels=3; set .*=rgb"),
        (1, 1, "rgb", None),
        (3, 1, "rgb", "colour=rgb: held has images of 3 channels, but .*channels=1; set .*=grey"),
        (0, 3, "as_stored", "held has grey and colour parts, but .*channels=3; set .*colour=rgb"),
        (0, 1, "as_stored", "held has grey and colour parts, but .*channels=1; set .*colour=grey"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(stored, tower, colour, message):
    loaded = functools.partial(
        channels.loaded, colour, stored, tower, corpus="held", where="config.towers.image"
    )
    if message is None:
        assert loaded() == 1
        return
    with pytest.raises(InputError, match=message) as error:
        loaded()
    assert "\n" not in str(error.value)


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="colour of input 'image'='pink'; choices: as_stored, gr"):
        Image("image", {"size": 16}, {**DATA, "colour": "pink"})
    with pytest.raises(InputError, match="channels of the tower of input 'image'=2; expected 1"):
        Image("image", {"size": 16, "channels": 2}, DATA)
    with pytest.raises(InputError, match="channels=4; expected 1"):
        channels.check("channels", 4)


def test_a_source_whose_images_have_other_channels_than_it_states_is_refused():
    with pytest.raises(InputError, match=r"record 0: an image \[23, 31, 3\]; expected 1 channel,"):
        read(corpus(RGB), channels=1, colour="as_stored")
    with pytest.raises(InputError, match=r"an image \[23, 31\]; expected 3 channels, as its corp"):
        read(corpus(GREY, channels=3), channels=3, colour="as_stored")


def test_the_cache_counts_channels_and_holds_what_was_read():
    rgb = corpus(RGB, RGB, channels=3)
    place = images.Preprocess(512)
    kept = {c: Load(rgb, place, 1, channels=c, colour="grey") for c in (1, 3)}
    assert [one._kept for one in kept.values()] == [4, 1]
    first = kept[3](0, 0)
    assert kept[3](0, 0) is first and first.shape == (512, 512, 3)
    window = kept[3](0, 0, np.empty((4, 4, 3), np.uint8), (200, 100))
    np.testing.assert_array_equal(window, first[200:204, 100:104])


# --- files


def stored(image: np.ndarray, kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    PIL.Image.fromarray(image).save(made, kind)
    return made.getvalue()


def table(folder, **options) -> Table:
    (folder / "a.png").write_bytes(stored(RGB))
    (folder / "b.png").write_bytes(stored(GREY))
    (folder / "pairs.csv").write_text("image,report\na.png,A.\nb.png,B.\n", encoding="utf-8")
    given = {"split": "train", "fractions": (1.0, 0.0, 0.0), **options}
    return Table(path=str(folder / "pairs.csv"), **given)


def test_a_grey_file_in_a_colour_corpus_is_repeated(tmp_path):
    grey, rgb = table(tmp_path), table(tmp_path, channels=3)
    assert (grey.channels, rgb.channels) == (1, 3)
    np.testing.assert_array_equal(rgb[0].images[0].load(), RGB)
    np.testing.assert_array_equal(rgb[1].images[0].load(), GREY[..., None].repeat(3, 2))
    np.testing.assert_array_equal(grey[0].images[0].load(), images.luma(RGB))
    with pytest.raises(InputError, match=r"channels=2; expected 1 \(grey\) or 3"):
        table(tmp_path, channels=2)


def test_digests_and_hashes_of_grey_images_do_not_depend_on_the_corpus():
    repeated = GREY[..., None].repeat(3, 2)
    assert shards.pixel_sha256(repeated) == shards.pixel_sha256(GREY)
    assert shards.pixel_sha256(RGB) not in map(shards.pixel_sha256, (GREY, RGB[..., ::-1]))
    assert perceptual_hash(repeated) == perceptual_hash(GREY)
    assert perceptual_hash(RGB) == perceptual_hash(images.luma(RGB))


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_prepared_corpora_keep_their_colour(tmp_path, form):
    smooth = cv2.resize(RGB[:3, :4], (64, 48), interpolation=cv2.INTER_LINEAR)
    table(tmp_path)
    (tmp_path / "a.png").write_bytes(stored(smooth))
    options = {"path": str(tmp_path / "pairs.csv"), "fractions": (1.0, 0.0, 0.0)}
    made = {}
    for count in (1, 3):
        settings = Settings(Storage(64, form), workers=0)
        out = tmp_path / f"made{count}"
        given = options | ({"channels": 3} if count == 3 else {})
        manifest = prepare("table", given, out, settings, say=lambda line: None)
        assert manifest["channels"] == count
        made[count] = Prepared(split="train", path=str(out))
        assert made[count].channels == count
        # Again: the finished corpus is recognised.
        again = prepare("table", given, out, settings, say=lambda line: None)
        assert again["files"] == manifest["files"]
    rgb = made[3].image(0)
    atol = 0 if form == "png" else 6
    np.testing.assert_allclose(rgb.astype(int), smooth, atol=atol)
    np.testing.assert_array_equal(made[3][0].images[0].load(), rgb)
    assert made[1].image(0).shape == rgb.shape[:2]
    assert made[3][1].images[0].sha256 == made[1][1].images[0].sha256
    assert made[3][0].images[0].phash == made[1][0].images[0].phash
    numbers = survey.pixels(Holdings(str(tmp_path / "made3")))
    each = [made[3].image(n) / 255 for n in range(2)]
    assert numbers["images"] == 2 and survey.pixels(Holdings(str(tmp_path / "made1"))) == {}
    mean = np.mean([image.mean(axis=(0, 1)) for image in each], axis=0)
    square = np.mean([(image**2).mean(axis=(0, 1)) for image in each], axis=0)
    np.testing.assert_allclose(numbers["mean"], mean)
    np.testing.assert_allclose(numbers["deviation"], np.sqrt(square - mean**2))
    mixed = Mixture(split="train", parts=[
        {"source": "prepared", "path": str(tmp_path / f"made{n}")} for n in (1, 3)
    ])  # fmt: skip
    assert mixed.channels == 0
    assert Mixture(split="train", parts=[{"source": "table", **options}]).channels == 1
    parts = tuple({"source": "prepared", "path": str(tmp_path / f"made{n}")} for n in (1, 3))
    with pytest.raises(InputError, match="mixture has grey and colour parts; prepare each of"):
        prepare("mixture", {"parts": parts}, tmp_path / "mix", settings)
    path = tmp_path / "made3" / shards.MANIFEST
    path.write_text(path.read_text("utf-8").replace('"channels": 3', '"channels": 4'), "utf-8")
    with pytest.raises(InputError, match="channels 4; expected 1 or 3"):
        Prepared(split="train", path=str(tmp_path / "made3"))


# --- DICOM


def test_dicom_keeps_its_colour():
    ds = dicoms.dataset(RGB, 8, PhotometricInterpretation="RGB", SamplesPerPixel=3)
    ds.PlanarConfiguration = 0
    data = dicoms.write(ds)
    np.testing.assert_array_equal(readers.decode_colour(data), RGB)
    grey = dicoms.image(GREY, 8)
    np.testing.assert_array_equal(
        readers.decode_colour(grey), readers.decode(grey)[..., None].repeat(3, 2)
    )
    # PS3.3 C.7.6.3.1.2, in float64.
    wide = RNG.integers(0, 256, (10, 12, 3), np.uint8)
    ds = dicoms.dataset(wide, 8, PhotometricInterpretation="YBR_FULL", SamplesPerPixel=3)
    ds.PlanarConfiguration = 0
    forward = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    back = (wide - [0, 128, 128]) @ np.linalg.inv(forward).T
    expected = np.clip(back, 0, 255)
    np.testing.assert_allclose(readers.decode_colour(dicoms.write(ds)), expected, atol=0.51)
    np.testing.assert_array_equal(readers.decode(dicoms.write(ds)), wide[..., 0])


def test_palettes_keep_their_colour():
    entries = np.random.default_rng(8).integers(0, 256, (3, 256))
    ds = dicoms.dataset(GREY, 8, PhotometricInterpretation="PALETTE COLOR")
    for element in dicoms.palette(entries, 8).values():
        ds.add(element)
    found = dicom_pixels.decode(dicoms.write(ds), colour=True)
    np.testing.assert_array_equal(found, np.moveaxis(entries[:, GREY], 0, -1))


# --- the phantom


@pytest.mark.parametrize("strength", [0.7, 0.85, 1.0])
def test_both_stains_have_the_same_luma(strength):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    made = {stain: tiles.stained(grey, stain, strength) for stain in tiles.STAINS}
    for image in made.values():
        np.testing.assert_array_equal(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), grey)
    differ = np.abs(made["purple"].astype(int) - made["pink"]).max(axis=2)
    assert (differ[4:14] > 15).all()  # levels that tissue and nuclei have


def test_stained_tiles_state_what_they_show():
    source = StainedTiles(split="train", length=240, render_size=32)
    held_out = StainedTiles(split="val", length=240, render_size=32)
    records = [source[n] for n in range(len(source))]
    patients = {record.patient_id for record in records}
    assert patients and not patients & {held_out[n].patient_id for n in range(len(held_out))}
    assert len({record.study_id for record in records}) == len(records) / 2
    assert source.channels == 3 and source.image(0).shape == (32, 32, 3)
    np.testing.assert_array_equal(source.image(5), records[5].images[0].load())
    for record in records:
        stated = {
            name for name, label in zip(record.label_names, record.labels, strict=True) if label
        }
        text = " ".join(record.sections.values()).lower()
        for stain in tiles.STAINS:
            assert (f"{stain} stain" in stated) == (stain in text)
        assert ("no gland" in text) != ("gland" in stated)
    shares = np.mean([record.labels for record in records], axis=0)
    assert (abs(shares - 0.5) < 0.15).all()
    with pytest.raises(InputError, match="length 0, render_size 64; expected at least 1 and 16"):
        StainedTiles(split="val", length=0)


def test_features_of_stained_tiles_may_be_rare():
    made = {"split": "train", "length": 600, "render_size": 16}
    rare = StainedTiles(**made, prevalence={"pink stain": 0.1, "gland": 0.0})
    shares = dict(zip(tiles.LABELS, np.mean([one.labels for one in rare], axis=0), strict=True))
    assert 0.03 < shares["pink stain"] < 0.2 and shares["gland"] == 0
    assert abs(shares["crowded pattern"] - 0.5) < 0.1
    plain, even = StainedTiles(**made), StainedTiles(**made, prevalence={"gland": 0.5})
    assert [one.labels for one in plain] == [one.labels for one in even]
    with pytest.raises(InputError, match="unknown label in prevalence 'nodule'"):
        StainedTiles(**made, prevalence={"nodule": 0.5})
    with pytest.raises(InputError, match="prevalence of gland is 2; expected a share from 0 to 1"):
        StainedTiles(**made, prevalence={"gland": 2})


def test_a_corpus_that_does_not_fit_the_tower_is_refused_before_it_is_read():
    from configs.proofs import colour

    config = colour.get_config("grey,smoke")
    config.data.colour = "as_stored"
    with pytest.raises(InputError, match="stained_tiles/train has images of 3 channels, but confi"):
        run.load_corpus(config, "train")
    config.data.colour = "grey"
    assert run.load_corpus(config, "train").channels == 3


@pytest.mark.exhaustive
@pytest.mark.optax
@pytest.mark.parametrize(("variant", "least", "most"), [("", 0.9, 1.0), ("grey", 0.35, 0.65)])
def test_colour_questions_are_answered_by_colour_alone(tmp_path, variant, least, most):
    config = f"--config=configs/proofs/colour.py:{variant}"
    assert commands.run_here("mmrl.main", config, f"--workdir={tmp_path}", "--nosummary") == 0
    last = sorted((tmp_path / "results").glob("*.json"))[-1]
    found = json.loads(last.read_text("utf-8"))["results"]
    colours, patterns = (found[name]["values"]["accuracy"] for name in ("colours", "patterns"))
    assert least <= colours["value"] <= most and patterns["value"] >= 0.9
