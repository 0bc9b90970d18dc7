"""MobileNetV2 against a NumPy reference, and its weights, which are read but not unpickled."""

import itertools
import os
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from benchmarks import mobilenet
from mmrl.models.convert import torch_file
from mmrl.types import InputError

# --- the network


def random_weights():
    """Tensors of every layer, with the names and shapes of torchvision."""
    rng = np.random.default_rng(0)
    found, width = {}, 3
    for layers, _ in mobilenet.blocks():
        for convolution, normalisation, _, _ in layers:
            kernel = KERNELS[convolution]
            out, inside, size, _ = kernel
            assert inside in (width, 1)
            found[f"{convolution}.weight"] = rng.normal(size=kernel) * (inside * size**2) ** -0.5
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 1.5),
            ):
                found[f"{normalisation}.{name}"] = rng.uniform(low, high, out)
            width = out
    return {name: array.astype(np.float32) for name, array in found.items()}


def shapes():
    """Convolution -> shape of its kernel, from table 2 of the paper, written out by block."""
    found = {"features.0.0": (32, 3, 3, 3), "features.18.0": (1280, 320, 1, 1)}
    found["features.1.conv.0.0"] = (32, 1, 3, 3)
    found["features.1.conv.1"] = (16, 32, 1, 1)
    outputs = [16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    for number, (before, after) in enumerate(itertools.pairwise(outputs), 2):
        wide = 6 * before
        found[f"features.{number}.conv.0.0"] = (wide, before, 1, 1)
        found[f"features.{number}.conv.1.0"] = (wide, 1, 3, 3)
        found[f"features.{number}.conv.2"] = (after, wide, 1, 1)
    return found


KERNELS = shapes()


def convolved(x, kernel, stride):
    """A convolution as a sum over the places of the kernel; [N, C, H, W]."""
    size = kernel.shape[-1]
    pad = size // 2
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total = 0
    for row in range(size):
        for column in range(size):
            part = x[:, :, row : row + stride * height : stride]
            part = part[..., column : column + stride * width : stride]
            if kernel.shape[1] == 1:
                total = total + part * kernel[:, 0, row, column][:, None, None]
            else:
                total = total + np.einsum("nchw,oc->nohw", part, kernel[:, :, row, column])
    return total


def reference(tensors, pixels):
    """The network in float64, with batch normalisation as a step of its own."""
    x = pixels.transpose(0, 3, 1, 2).astype(np.float64)
    strided = {"features.0.0", *(f"features.{n}.conv.1.0" for n in (2, 4, 7, 14))}
    residual = {3, 5, 6, 8, 9, 10, 12, 13, 15, 16}
    names = sorted(KERNELS, key=lambda name: [int(p) for p in name.split(".") if p.isdigit()])
    before = x
    for name in names:
        block = int(name.split(".")[1])
        starts = name.endswith("conv.0.0") or name.count(".") == 2
        before = x if starts else before
        x = convolved(x, tensors[f"{name}.weight"].astype(np.float64), 2 if name in strided else 1)
        stem, _, last = name.rpartition(".")
        normal = f"{stem}.{int(last) + 1}"
        gain, bias, mean, variance = (
            tensors[f"{normal}.{one}"][:, None, None].astype(np.float64)
            for one in ("weight", "bias", "running_mean", "running_var")
        )
        x = (x - mean) / np.sqrt(variance + 1e-5) * gain + bias
        linear = "conv" in name and not name.endswith(".0")
        x = x if linear else np.clip(x, 0, 6)
        if linear and block in residual:
            x = x + before
    return x.mean(axis=(2, 3))


def test_the_layers_are_those_of_the_paper():
    named = [convolution for layers, _ in mobilenet.blocks() for convolution, *_ in layers]
    assert sorted(named) == sorted(KERNELS) and len(named) == 52
    kernels = sum(np.prod(shape) for shape in KERNELS.values())
    normalisations = sum(2 * shape[0] for shape in KERNELS.values())
    # With the classifier on top this is the published number of parameters of torchvision.
    assert kernels + normalisations + 1000 * 1281 == 3_504_872


def test_the_network_agrees_with_a_reference():
    tensors = random_weights()
    pixels = np.random.default_rng(1).normal(size=(2, 40, 33, 3)).astype(np.float32)
    layers = mobilenet.folded(tensors)
    found = np.asarray(jax.jit(lambda given: mobilenet.network(layers, given))(pixels))
    assert found.shape == (2, mobilenet.WIDTH) and found.std() > 0.05
    np.testing.assert_allclose(found, reference(tensors, pixels), atol=2e-4)
    del tensors["features.9.conv.2.weight"]
    with pytest.raises(InputError, match=r"weights without 'features\.9\.conv\.2\.weight'"):
        mobilenet.folded(tensors)


def test_images_are_padded_repeated_and_normalised():
    grey = np.full((100, 50), 255, np.uint8)
    found = mobilenet.preprocess(grey)
    assert found.shape == (224, 224, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[0, 112], (1 - np.array([0.485, 0.456, 0.406])) / [
        0.229, 0.224, 0.225,
    ], rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(found[0, 0] * [0.229, 0.224, 0.225], [-0.485, -0.456, -0.406], 1e-6)
    colour = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(mobilenet.preprocess(colour), found)
    colour[..., 1:] = 0
    np.testing.assert_array_equal(mobilenet.preprocess(colour)[..., 0], found[..., 0])
    for bad in (grey.astype(np.float32), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(InputError, match=r"expected uint8 \[H, W\] or \[H, W, 3\]"):
            mobilenet.preprocess(bad)


def test_colour_is_read_as_red_green_and_blue(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((4, 5, 3), (1, 2, 3), np.uint8))  # blue, green, red
    np.testing.assert_array_equal(mobilenet.read_colour(path), np.full((4, 5, 3), (3, 2, 1)))
    path.write_bytes(b"no")
    with pytest.raises(InputError, match=r"a\.png: no image that can be read"):
        mobilenet.read_colour(path)


def test_absent_weights_are_said(tmp_path, capsys):
    assert not mobilenet.available(tmp_path / "none.pth")
    assert "its row is left out" in capsys.readouterr().out


@pytest.mark.real_data
def test_a_photograph_of_a_palace_is_one():
    weights = os.environ.get("MMRL_MOBILENET", "")
    if not weights:
        pytest.skip("MMRL_MOBILENET does not name the weights of MobileNetV2")
    datasets = pytest.importorskip("sklearn.datasets")
    photograph = datasets.load_sample_image("china.jpg")[:, 106:533]
    found = mobilenet.features([photograph], Path(weights), batch=1)
    tensors = torch_file.read(Path(weights))
    weight, bias = (tensors[f"classifier.1.{name}"].read() for name in ("weight", "bias"))
    logits = found[0] @ weight.T + bias
    palace, monastery, bell_cote = 698, 663, 442
    assert np.argsort(-logits)[:3].tolist() == [palace, monastery, bell_cote]
