"""Published poolers by the names of their tensors in PyTorch, computed in float64 by NumPy."""

from typing import Any

import numpy as np
from scipy.special import erf, expit

from tests import references


class Torch:
    """Random tensors by name, made when they are first asked for, as PyTorch lays them out."""

    def __init__(self, seed: int = 0) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(seed)

    def tensor(self, name: str, *shape: int, mean: float = 0.0) -> np.ndarray:
        if name not in self.tensors:
            self.tensors[name] = self._rng.normal(mean, 0.3, shape).astype(np.float32)
        return self.tensors[name].astype(np.float64)

    def linear(self, name: str, x: np.ndarray, out: int, bias: bool = True) -> np.ndarray:
        y = x @ self.tensor(f"{name}.weight", out, x.shape[-1]).T
        return y + self.tensor(f"{name}.bias", out) if bias else y

    def norm(self, name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        scale = self.tensor(f"{name}.weight", x.shape[-1], mean=1.0)
        return x * scale + self.tensor(f"{name}.bias", x.shape[-1])

    def gated(self, name: str, x: np.ndarray, hidden: int, branches: int = 1) -> np.ndarray:
        a = np.tanh(self.linear(f"{name}attention_a.0", x, hidden))
        b = expit(self.linear(f"{name}attention_b.0", x, hidden))
        return self.linear(f"{name}attention_c", a * b, branches)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """One number at a time."""
    found = np.zeros((rows, columns, width))
    half = width // 2
    for y, x, i in np.ndindex(rows, columns, half):
        for start, place, count in ((0, y, rows), (half, x, columns)):
            angle = (place + 1) / (count + 1e-6) * 2 * np.pi / 10000 ** (2 * (i // 2) / half)
            found[y, x, start + i] = np.cos(angle) if i % 2 else np.sin(angle)
    return found.reshape(-1, width)


def biovil_t(torch: Torch, current: np.ndarray, prior: np.ndarray, grid: Any) -> np.ndarray:
    """`VisionTransformerPooler` of 4 heads and 3 blocks; regions [B, R, C]."""
    count, width = current.shape[1:]
    types = torch.tensor("type_embed", 2, 1, width)
    places = positions(*grid, width)
    places = np.concatenate([places + types[0], places + types[1]])
    x = np.concatenate([current, prior], axis=1)
    for index in range(3):
        h = torch.norm(f"blocks.{index}.norm1", x, 1e-6) + places
        query, key, value = (
            torch.linear(f"blocks.{index}.attn.proj_{part}", h, width, bias=False)
            .reshape(len(x), 2 * count, 4, width // 4)
            .swapaxes(1, 2)
            for part in "qkv"
        )
        scores = query @ key.swapaxes(2, 3) / np.sqrt(width // 4)
        attended = (references.softmax(scores, axis=3) @ value).swapaxes(1, 2)
        x = x + torch.linear(f"blocks.{index}.attn.proj", attended.reshape(x.shape), width)
        wide = torch.linear(
            f"blocks.{index}.mlp.fc1", torch.norm(f"blocks.{index}.norm2", x, 1e-6), width
        )
        x = x + torch.linear(f"blocks.{index}.mlp.fc2", gelu(wide), width)
    return torch.norm("norm_post", x, 1e-6)[:, :count]
