"""Small files that PyTorch wrote, which `tests/golden/torch` holds.

    python -m tests.reference_torch_files

This is a script of developers. It needs torch, which mmrl does not. `tests/test_weight_files.py`
states what each file holds.
"""

from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden" / "torch"
KINDS = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")


def state() -> dict[str, torch.Tensor]:
    """Tensors of every kind, and the layouts in which they may lie in a storage."""
    ramp = torch.arange(24, dtype=torch.float32)
    found = {kind: torch.arange(3).to(getattr(torch, kind)) for kind in KINDS}
    return found | {
        "bool": torch.tensor([True, False, True]),
        "whole": ramp.view(4, 6),
        "transposed": ramp.view(4, 6).t(),
        "part": ramp[5:17].view(3, 4)[:, ::2],
        "permuted": ramp.view(2, 3, 4).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(ramp[:2] / 2),
        "frozen": torch.nn.Parameter(ramp[2:4], requires_grad=False),
        "expanded": torch.arange(4).expand((1, -1)),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5),
    }


def model() -> torch.nn.Module:
    """A model whose state dictionary carries versions of its modules, in DataParallel."""
    made = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    with torch.no_grad():
        for index, one in enumerate(made.state_dict().values()):
            one.copy_(torch.full_like(one, index))
    return torch.nn.DataParallel(made)


def files() -> dict[str, tuple[object, dict[str, object]]]:
    """Name of a file -> what it holds, and how it is saved."""
    optimizer = torch.optim.AdamW(model().parameters(), lr=0.1)
    training = {"epoch": 3, "state_dict": model().state_dict(), "optimizer": optimizer.state_dict()}
    stream = {"_use_new_zipfile_serialization": False}
    return {
        "archive": (state(), {}),
        "protocol_5": (state(), {"pickle_protocol": 5}),
        "stream": (state(), stream),
        "training": (training, {}),
        "training_stream": (training, stream),
        "module": (model().module, {}),
        "complex": ({"a": torch.zeros(2, dtype=torch.complex64)}, {}),
        "sparse": ({"a": torch.eye(2).to_sparse()}, {}),
        "unsigned": ({"a": torch.zeros(2, dtype=torch.uint16)}, {}),
        "numpy": ({"a": torch.zeros(2), "best": np.float64(0.5)}, {}),
        "tensor": (torch.zeros(2), {}),
    }


def main() -> None:
    """Writes all files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (content, how) in files().items():
        torch.save(content, FOLDER / f"{name}.pt", **how)


if __name__ == "__main__":
    main()
