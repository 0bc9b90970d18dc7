"""Image bytes to pixels, pixels to a square: values, geometry, refusals."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mmrl.data.image import containers, images, readers
from mmrl.types import InputError
from tests.damage_binary import tiff

LEVELS = np.array([[0, 60, 200, 255]] * 3, np.uint8)
ALPHA = np.array([[0, 128, 255, 255]] * 3, np.uint8)
OVER_BLACK = LEVELS.astype(int) * ALPHA / 255


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def raw_png(samples: np.ndarray, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """Writes packed rows as they are, for the modes that no encoder at hand writes."""
    width = samples.shape[1] * 8 // depth if depth < 8 else samples.shape[1]
    header = struct.pack(">IIBBBBB", width, samples.shape[0], depth, colour, 0, 0, 0)
    rows = b"".join(
        b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples
    )
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def smooth(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 6, (height, width))
    return (120 + 50 * np.sin(x / 9) + 40 * np.cos(y / 7) + noise).clip(0, 255).astype(np.uint8)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (4, 3))
    image.putdata([0, 1, 2, 3] * 3)
    image.putpalette([10, 20, 30, 40, 50, 60, 200, 100, 50, 255, 255, 255])
    return encode(image, **options)


def luma(red: Any, green: Any, blue: Any) -> Any:
    return 0.299 * red + 0.587 * green + 0.114 * blue


PALETTE_LUMA = [luma(10, 20, 30), luma(40, 50, 60), luma(200, 100, 50), 255]
GREY, SEE_THROUGH = Image.fromarray(LEVELS), Image.fromarray(ALPHA)
WIDE = LEVELS.astype(np.uint16) * 257
WIDE_ALPHA = ALPHA.astype(np.uint16) * 257
COLOUR_16 = np.stack([WIDE, WIDE // 2, WIDE // 3], -1)  # R, G, B
LUMA_16 = luma(*(COLOUR_16[..., channel].astype(float) for channel in range(3)))

MODES: dict[str, tuple[bytes, Any]] = {
    "grey": (encode(GREY), LEVELS),
    "grey alpha": (encode(Image.merge("LA", (GREY, SEE_THROUGH))), OVER_BLACK),
    "grey key": (encode(GREY, transparency=200), np.where(LEVELS == 200, 0, LEVELS)),
    "RGB": (encode(Image.merge("RGB", (GREY, SEE_THROUGH, GREY))), luma(LEVELS, ALPHA, LEVELS)),
    "RGB key": (
        encode(GREY.convert("RGB"), transparency=(60, 60, 60)),
        np.where(LEVELS == 60, 0, LEVELS),
    ),
    "RGBA": (encode(Image.merge("RGBA", (GREY, GREY, GREY, SEE_THROUGH))), OVER_BLACK),
    "palette": (palette(), [PALETTE_LUMA] * 3),
    "palette 2 bit": (palette(bits=2), [PALETTE_LUMA] * 3),
    "palette alpha": (
        palette(transparency=bytes([0, 128])),
        [[0, PALETTE_LUMA[1] * 128 / 255, *PALETTE_LUMA[2:]]] * 3,
    ),
    "palette key": (palette(transparency=2), [[*PALETTE_LUMA[:2], 0, 255]] * 3),
    "1 bit": (encode(Image.fromarray(LEVELS > 100)), np.where(LEVELS > 100, 255, 0)),
    "2 bit": (raw_png(np.full((3, 1), 0b00011011, np.uint8), 2, 0), [[0, 85, 170, 255]] * 3),
    "2 bit key": (
        raw_png(np.full((3, 1), 0b00011011, np.uint8), 2, 0, chunk(b"tRNS", b"\0\2")),
        [[0, 85, 0, 255]] * 3,
    ),
    "16 grey": (raw_png(WIDE, 16, 0), WIDE),
    "16 grey key": (
        raw_png(WIDE, 16, 0, chunk(b"tRNS", struct.pack(">H", 200 * 257))),
        np.where(LEVELS == 200, 0, WIDE),
    ),
    "16 grey alpha": (
        raw_png(np.stack([WIDE, WIDE_ALPHA], -1), 16, 4),
        WIDE.astype(float) * WIDE_ALPHA / 65535,
    ),
    "16 RGB": (raw_png(COLOUR_16, 16, 2), LUMA_16),
    "16 RGBA": (
        raw_png(np.concatenate([COLOUR_16, WIDE_ALPHA[..., None]], -1), 16, 6),
        LUMA_16 * WIDE_ALPHA / 65535,
    ),
}


COLOUR = Image.merge("RGB", (GREY, SEE_THROUGH, GREY))


PLANES = np.stack([LEVELS, ALPHA, LEVELS], -1)
TILES = np.zeros((2, 16, 16), np.uint8)
TILES[0, :3], TILES[1, :3] = np.tile(LEVELS, 4), np.tile(LEVELS, 4)


TIFF_MODES: dict[str, tuple[bytes, Any]] = {
    "grey": (encode(GREY, "TIFF"), LEVELS),
    "grey alpha": (encode(Image.merge("LA", (GREY, SEE_THROUGH)), "TIFF"), OVER_BLACK),
    "1 bit": (encode(Image.fromarray(LEVELS > 100), "TIFF"), np.where(LEVELS > 100, 255, 0)),
    "4 bit": (tiff(LEVELS[:, ::2] & 0xF0 | 3, t256=4, t258=4), [[0, 51, 204, 51]] * 3),
    "palette": (encode(Image.open(io.BytesIO(palette())), "TIFF"), [PALETTE_LUMA] * 3),
    "RGB": (encode(COLOUR, "TIFF"), luma(LEVELS, ALPHA, LEVELS)),
    "RGBA": (encode(Image.merge("RGBA", (GREY, GREY, GREY, SEE_THROUGH)), "TIFF"), OVER_BLACK),
    "white is 0": (tiff(255 - LEVELS, t262=0), LEVELS),
    "16 grey": (encode(Image.fromarray(WIDE), "TIFF"), WIDE),
    "16 white is 0": (tiff(65535 - WIDE, t262=0), WIDE),
    "16 white is 0, big endian": (tiff(65535 - WIDE, ">", t262=0), WIDE),
    "16 big endian": (tiff(WIDE, ">"), WIDE),
    "RGB big endian": (tiff(PLANES, ">"), luma(LEVELS, ALPHA, LEVELS)),
    "RGB planes": (
        tiff(
            np.moveaxis(PLANES, -1, 0).reshape(9, 4),
            **{"t257": 3, "t258": [8] * 3, "t262": 2, "t273": [8, 20, 32], "t277": 3, "t278": 3},
            **{"t279": [12] * 3, "t284": 2},
        ),
        luma(LEVELS, ALPHA, LEVELS),
    ),
    "tiles": (
        tiff(
            TILES.reshape(32, 16),
            **{"t256": 32, "t257": 3, "t273": [], "t322": 16, "t323": 16},
            **{"t324": [8, 264], "t325": [256] * 2},
        ),
        np.tile(LEVELS, 8),
    ),
    "turned": (tiff(LEVELS, t274=6), LEVELS),
    **{
        f"{depth}{compression}": (encode(image, "TIFF", compression=compression), expected)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")
        for depth, image, expected in (
            ("", GREY, LEVELS),
            ("16 ", Image.fromarray(WIDE), WIDE),
            ("RGB ", COLOUR, luma(LEVELS, ALPHA, LEVELS)),
        )
    },
}
WEBP_MODES: dict[str, tuple[bytes, Any]] = {
    "RGB": (encode(COLOUR, "WebP", lossless=True), luma(LEVELS, ALPHA, LEVELS)),
    "RGBA": (
        encode(Image.merge("RGBA", (GREY, GREY, GREY, SEE_THROUGH)), "WebP", lossless=True),
        OVER_BLACK,
    ),
}


@pytest.mark.parametrize(
    ("data", "expected"),
    [*TIFF_MODES.values(), *WEBP_MODES.values()],
    ids=[*(f"TIFF {name}" for name in TIFF_MODES), *(f"WebP {name}" for name in WEBP_MODES)],
)
def test_tiff_and_webp_of_every_mode_keep_their_values(data: bytes, expected: Any) -> None:
    image = images.decode(data)
    assert image.dtype == (np.uint16 if np.max(expected) > 255 else np.uint8)
    exact = np.array_equal(np.asarray(expected), np.rint(expected))
    np.testing.assert_allclose(image, expected, rtol=0, atol=0 if exact else 1)


@pytest.mark.parametrize("mode", MODES)
def test_png_of_every_mode_keeps_its_values(mode: str) -> None:
    data, expected = MODES[mode]
    image = images.decode(data)
    assert image.dtype == (np.uint16 if mode.startswith("16") else np.uint8)
    assert image.shape == (3, 4)
    # Luma and opacity are each rounded once; everything else is exact.
    exact = np.array_equal(np.asarray(expected), np.rint(expected))
    np.testing.assert_allclose(image, expected, rtol=0, atol=0 if exact else 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_to_luma(mode: str, progressive: bool) -> None:
    grey = Image.fromarray(smooth())
    image = Image.merge(mode, [grey, *[grey.point(lambda v: v // 2)] * (len(mode) - 1)])
    data = encode(image, "JPEG", quality=95, progressive=progressive)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L"), int)
    # Colour: the reference is rounded to RGB and clipped before luma. CMYK has no one formula.
    atol = {"L": 0, "RGB": 2, "CMYK": 4}[mode]
    np.testing.assert_allclose(images.decode(data), reference, rtol=0, atol=atol)


def test_orientation_tags_are_ignored() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    picture = Image.fromarray(smooth(16, 32))
    for kind in ("JPEG", "PNG", "TIFF", "WebP"):
        tagged, plain = encode(picture, kind, exif=exif), encode(picture, kind)
        assert images.decode(tagged).shape == (16, 32)
        np.testing.assert_array_equal(images.decode(tagged), images.decode(plain))


def test_embedded_thumbnail_does_not_pass_for_the_end() -> None:
    thumbnail = encode(Image.fromarray(smooth(8, 8)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = encode(Image.fromarray(smooth()), "JPEG")
    whole = data[:2] + segment + data[2:]
    np.testing.assert_array_equal(images.decode(whole), images.decode(data))
    assert containers.inspect(whole)[:3] == ("JPEG", 60, 80)
    with pytest.raises(InputError, match="truncated JPEG"):
        images.decode(whole[: len(whole) * 2 // 3])


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("read", [images.decode, containers.inspect])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("PNG", {}),
            ("PNG", {"compress_level": 0}),
        ),
        *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})),
        *(("WebP", {}), ("WebP", {"lossless": True})),
    ],
)
def test_every_truncation_is_found(read: Callable, kind: str, options: dict) -> None:
    data = encode(Image.fromarray(smooth()), kind, **options)
    read(data)
    for length in range(1, len(data), 1 if kind in ("JPEG", "PNG") else 7):
        with pytest.raises(InputError, match=f"truncated {kind}|expected a JPEG, PNG, TIFF"):
            read(data[:length])


def test_restart_markers_and_trailing_bytes_are_no_damage() -> None:
    ok, data = cv2.imencode(".jpg", smooth(), [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    assert ok and b"\xff\xd3" in data.tobytes()
    with_tail = data.tobytes() + b"\0" * 100
    np.testing.assert_array_equal(
        images.decode(with_tail), cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    )


def test_damage_is_found() -> None:
    data = bytearray(encode(Image.fromarray(smooth())))
    data[len(data) // 2] ^= 1
    with pytest.raises(InputError, match=r"damaged PNG: checksum of the chunk at byte 33"):
        images.decode(bytes(data))
    short = raw_png(smooth()[:30], 8, 0)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 80, 60, 8, 0, 0, 0, 0))
    with pytest.raises(InputError, match="damaged or unsupported PNG: its pixels"):
        images.decode(short[:8] + header + short[33:])  # checksums right, half the rows missing
    jpeg = encode(Image.fromarray(smooth()), "JPEG")
    zeroed = jpeg[: len(jpeg) // 2] + b"\0" * (len(jpeg) // 2)  # a download into reserved space
    with pytest.raises(InputError, match="truncated JPEG"):
        images.decode(zeroed)
    for other in (b"", b"GIF89a...", b"<html>"):
        with pytest.raises(
            InputError, match=r"the file .*; expected a JPEG, PNG, TIFF, WebP or DICOM"
        ):
            images.decode(other)


def webp(**options: Any) -> bytes:
    return encode(Image.fromarray(smooth()), "WebP", **options)


def test_lossy_webp_and_jpeg_in_tiff_become_luma() -> None:
    for data in (webp(quality=95), encode(Image.fromarray(smooth()), "TIFF", compression="jpeg")):
        difference = np.abs(images.decode(data).astype(int) - smooth())
        assert difference.max() <= 24 and difference.mean() < 5
    colour = Image.merge("RGB", [Image.fromarray(smooth() // n) for n in (1, 2, 3)])
    for data in (
        encode(colour, "WebP", quality=95),
        encode(colour, "TIFF", compression="jpeg", quality=95),
    ):
        reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L"), int)
        np.testing.assert_allclose(images.decode(data), reference, rtol=0, atol=1)


def pages(kind: str) -> bytes:
    other = Image.fromarray(smooth())
    return encode(other, kind, save_all=True, append_images=[other.point(lambda level: level // 2)])


TIFF_REFUSALS: dict[str, tuple[bytes, str, str]] = {
    "pages": (pages("TIFF"), "multi_frame", "TIFF of several images"),
    "animation": (pages("WebP"), "multi_frame", "animated WebP"),
    "float": (tiff(LEVELS.view(np.float32), t339=3), "unsupported", "floating-point samples"),
    "signed": (tiff(WIDE, t339=2), "unsupported", "signed or floating-point"),
    "32 bits": (tiff(LEVELS.view(np.uint32)), "unsupported", "1 samples of 32 bits"),
    "16-bit colour": (tiff(COLOUR_16), "unsupported", "3 samples of 16 bits"),
    "CMYK": (tiff(np.dstack([LEVELS] * 4), t262=5), "unsupported", "interpretation 5"),
    "fax": (tiff(LEVELS, t258=1, t259=4), "unsupported", "compression 4; expected none, LZW"),
    "BigTIFF": (b"II\x2b\0\x08\0\0\0" + bytes(99), "unsupported", "BigTIFF"),
    "parts": (tiff(LEVELS, t278=1), "unreadable_image", "1 parts; its size needs 3"),
    "far": (tiff(LEVELS, t273=2**20), "unreadable_image", "truncated TIFF"),
    "short": (tiff(LEVELS, t257=9, t278=9), "unreadable_image", "fewer bytes than pixels"),
    "palette": (tiff(LEVELS, t262=3, t320=[0] * 3), "unreadable_image", "a palette of another"),
    "huge": (tiff(LEVELS, t256=10**5, t257=10**5), "unreadable_image", "100000 x 100000 pixels"),
    "huge tiles": (
        tiff(LEVELS, t273=[], t322=2**16, t323=2**16, t324=8, t325=12),
        "unreadable_image",
        "parts of 65536 x 65536 pixels",
    ),
    "canvas": (
        b"RIFF\x3c\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff"  # 2**24 squared
        b"VP8L\x1e\0\0\0\x2f" + bytes(29),
        "unreadable_image",
        "as large as its canvas",
    ),
}


@pytest.mark.parametrize("name", TIFF_REFUSALS)
def test_tiff_and_webp_are_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    data, reason, message = TIFF_REFUSALS[name]
    (tmp_path / "a").write_bytes(data)
    for verify in ("decode", "header"):
        found = readers.fault(str(tmp_path), "a", verify)
        assert found and found[0] == reason and message in found[1] and "\n" not in found[1]


def test_bomb_is_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match=r"100000 x 100000 pixels; expected at most 67108864"):
        images.decode(png)
    jpeg = bytearray(encode(Image.fromarray(smooth()), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(InputError, match=r"65000 x 65000 pixels"):
        images.decode(bytes(jpeg))
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 0, 80)
    with pytest.raises(InputError, match=r"damaged JPEG: 80 x 0 pixels"):
        images.decode(bytes(jpeg))


def test_files_are_named_in_errors(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(MODES["grey"][0])
    (tmp_path / "bad.png").write_bytes(MODES["grey"][0][:-4])
    os.mkfifo(tmp_path / "pipe.png")
    load = readers.loader(str(tmp_path), "good.png")
    np.testing.assert_array_equal(ForkingPickler.loads(ForkingPickler.dumps(load))(), LEVELS)
    assert readers.size(str(tmp_path), "good.png") == (3, 4)
    with pytest.raises(InputError, match=r"bad\.png: truncated PNG"):
        readers.read(tmp_path / "bad.png")
    for name in ("none.png", "pipe.png"):  # a pipe must not block
        with pytest.raises(InputError, match=rf"{name}: no such file"):
            readers.read(tmp_path / name)
    for name in (".", "none"):  # perhaps DICOM, whose names are not repeated
        with pytest.raises(InputError, match=r"^no such file$"):
            readers.read(tmp_path / name)


def test_sixteen_bits_become_eight_by_a_stated_range() -> None:
    image = np.array([[0, 128, 257, 4095]], np.uint16)
    np.testing.assert_array_equal(images.to_uint8(image), [[0, 0, 1, 16]])
    np.testing.assert_array_equal(images.to_uint8(image, 4095), [[0, 8, 16, 255]])
    full = np.arange(65536, dtype=np.uint16)[None]
    np.testing.assert_array_equal(images.to_uint8(full), np.rint(full / 257))
    assert images.to_uint8(LEVELS, 4095) is LEVELS
    with pytest.raises(InputError, match="pixel of value 4095; expected at most max_value 1023"):
        images.to_uint8(image, 1023)
    with pytest.raises(InputError, match="dtype float32; expected uint8 or uint16"):
        images.to_uint8(image.astype(np.float32))
    with pytest.raises(InputError, match="max_value 0; expected 1 to 65535"):
        images.to_uint8(image, 0)


def test_pad_keeps_aspect_and_centres_on_black() -> None:
    preprocess = images.Preprocess(size=64)
    square = preprocess(np.full((100, 200), 90, np.uint8))
    assert square.shape == (64, 64) and square.dtype == np.uint8
    assert np.all(square[16:48] == 90) and not square[:16].any() and not square[48:].any()
    assert preprocess.geometry(100, 200) == images.Geometry(0.32, 0.32, 16.0, 0.0)
    boxes = preprocess.geometry(100, 200).boxes([[0, 0, 200, 100], [50, 25, 100, 75]])
    np.testing.assert_allclose(boxes, [[0, 16, 64, 48], [16, 24, 32, 40]])
    tall = preprocess.geometry(128, 32)
    np.testing.assert_allclose(tall.boxes([8, 64, 32, 128]), [28, 32, 40, 64])
    sliver = images.Preprocess(size=8)(np.full((1, 5000), 7, np.uint8))
    assert np.count_nonzero(sliver) == 8


def test_crop_keeps_the_centre_undistorted() -> None:
    preprocess = images.Preprocess(size=40, resize="crop")
    image = np.zeros((80, 200), np.uint8)
    image[:, 60:140] = smooth(80, 80)
    np.testing.assert_array_equal(preprocess(image), images.Preprocess(size=40)(image[:, 60:140]))
    assert preprocess.geometry(80, 200) == images.Geometry(0.5, 0.5, 0.0, -30.0)
    boxes = preprocess.geometry(80, 200).boxes([[60, 0, 140, 80], [0, 0, 60, 80]])
    np.testing.assert_allclose(boxes, [[0, 0, 40, 40], [-30, 0, 0, 40]])  # seen; not seen
    np.testing.assert_array_equal(preprocess(image.T), preprocess(image).T)
    part = preprocess(image, np.empty((10, 20), np.uint8), corner=(5, 8))
    np.testing.assert_array_equal(part, preprocess(image)[5:15, 8:28])
    assert preprocess(np.full((1, 60000), 7, np.uint8)).tolist() == [[7] * 40] * 40


@pytest.mark.parametrize("resize", ["pad", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(90, 300), (301, 77), (20, 30), (500, 12)])
def test_geometry_says_where_content_lands(resize: str, height: int, width: int) -> None:
    preprocess = images.Preprocess(size=96, resize=resize)
    box = (width // 4, height // 4, width // 2, height // 2)
    image = np.zeros((height, width), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    square = preprocess(image) / 255
    x0, y0, x1, y1 = preprocess.geometry(height, width).boxes(box)
    assert square.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.05)
    y, x = np.mgrid[:96, :96] + 0.5
    assert (square * x).sum() / square.sum() == pytest.approx((x0 + x1) / 2, abs=0.3)
    assert (square * y).sum() / square.sum() == pytest.approx((y0 + y1) / 2, abs=0.3)


def test_geometry_of_a_crop_says_where_content_lands() -> None:
    preprocess = images.Preprocess(size=96, resize="crop")
    image = np.zeros((301, 220), np.uint8)
    image[150:200, 60:130] = 255
    square = preprocess(image) / 255
    x0, y0, x1, y1 = preprocess.geometry(301, 220).boxes((60, 150, 130, 200))
    assert square.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.02)
    y, x = np.mgrid[:96, :96] + 0.5
    assert (square * x).sum() / square.sum() == pytest.approx((x0 + x1) / 2, abs=0.1)
    assert (square * y).sum() / square.sum() == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_resizing_averages_areas_and_never_overshoots() -> None:
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (64, 64))
    assert set(np.unique(images.Preprocess(size=32)(fine))) <= {127, 128}
    stretched = images.Preprocess(size=64, resize="stretch")(fine[:16, :])  # 16 up, 128 down
    assert set(np.unique(stretched)) <= {127, 128}
    step = np.repeat(np.array([[50, 200]], np.uint8), 4, axis=1).repeat(8, axis=0)
    grown = images.Preprocess(size=40)(step)
    assert grown.min() == 50 and grown.max() == 200
    np.testing.assert_array_equal(images.Preprocess(size=8)(step), step)


def test_preprocess_survives_a_round_trip_and_refuses_nonsense() -> None:
    preprocess = images.Preprocess(size=224, resize="stretch", max_value=4095)
    assert images.Preprocess(**preprocess.to_dict()) == preprocess
    assert preprocess(np.full((5, 5), 4095, np.uint16)).min() == 255
    with pytest.raises(InputError, match="resize 'cut'; choices: pad, stretch, crop"):
        images.Preprocess(size=8, resize="cut")
    with pytest.raises(InputError, match="size 0; expected at least 1"):
        images.Preprocess(size=0)
    with pytest.raises(InputError, match="max_value 70000; expected 1 to 65535"):
        images.Preprocess(size=8, max_value=70000)
    with pytest.raises(InputError, match=r"shape \(4, 4, 2\); expected \[H, W\]"):
        preprocess(np.zeros((4, 4, 2), np.uint8))
