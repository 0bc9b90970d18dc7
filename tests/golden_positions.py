"""Position tables and patch kernels as timm and transformers resize them, for test_positions.py.

    python -m tests.golden_positions

rewrites tests/golden/positions.json. It needs torch, timm and transformers, which nothing else here
does; the tests read the file alone.
"""

import json
import pathlib
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden" / "positions.json"
# Sides of square grids, and the (rows, columns) that they become.
GRIDS = ((37, (16, 16)), (3, (5, 5)), (5, (7, 2)), (7, (9, 9)))
# Sides of patches before and after, channels, features.
PATCHES = ((16, 14, 1, 1), (3, 5, 3, 2), (5, 3, 3, 2))


def values(*shape: int) -> np.ndarray:
    """The values that are resized, f32[*shape]."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def grid_name(old: int, new: tuple[int, int], antialias: bool) -> str:
    """The key of a resized table, f32[rows * columns, 1]."""
    return f"{old}x{old} to {new[0]}x{new[1]}" + (", antialias" if antialias else "")


def patch_name(old: int, new: int, channels: int) -> str:
    """The key of a resized kernel, f32[new * new * channels, features]."""
    return f"patch {old} to {new}, channels {channels}"


def dinov2(old: int, new: tuple[int, int], table: np.ndarray) -> np.ndarray:
    """The table of the patches as `Dinov2Embeddings` of transformers interpolates it."""
    import torch
    from transformers import Dinov2Config
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

    config = Dinov2Config(hidden_size=1, num_attention_heads=1, image_size=2 * old, patch_size=2)
    layer = Dinov2Embeddings(config)
    with torch.no_grad():
        layer.position_embeddings[0, 1:] = torch.tensor(table)
        tokens = torch.zeros(1, 1 + new[0] * new[1], 1)
        return layer.interpolate_pos_encoding(tokens, 2 * new[0], 2 * new[1])[0, 1:].numpy()


def main() -> None:
    """Writes the file."""
    import torch
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    found: dict[str, Any] = {}
    for old, new in GRIDS:
        table = values(old * old, 1)
        resized = resample_abs_pos_embed(
            torch.tensor(table)[None], list(new), [old, old], num_prefix_tokens=0
        )
        found[grid_name(old, new, True)] = resized[0].numpy()
        found[grid_name(old, new, False)] = dinov2(old, new, table)
    for old, new, channels, features in PATCHES:
        kernel = torch.tensor(values(old, old, channels, features)).permute(3, 2, 0, 1)
        resized = resample_patch_embed(kernel, [new, new]).permute(2, 3, 1, 0)
        found[patch_name(old, new, channels)] = resized.reshape(-1, features).numpy()
    rounded = {name: [round(x, 6) for x in array.ravel().tolist()] for name, array in found.items()}
    lines = (f"{json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in rounded.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(GOLDEN)


if __name__ == "__main__":
    main()
