"""The sharding of every parameter of the shipped configs, as text that tests compare with.

    python -m tests.specs

rewrites tests/golden/*.txt; look at the difference before you commit it.
"""

import collections
import functools
import re
import runpy
from pathlib import Path

import jax

from mmrl.devices import sharding
from mmrl.training import learner
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
AXES = {"data": 2, "fsdp": 2, "tensor": 2}


def shipped() -> list[Path]:
    """All config files of the repository."""
    return sorted(p for p in (ROOT / "configs").rglob("*.py") if p.stem != "__init__")


def golden(config: Path) -> Path:
    """The golden file of a config file."""
    return GOLDEN / ("_".join(config.relative_to(ROOT / "configs").with_suffix("").parts) + ".txt")


@functools.cache
def layout(config: Path) -> learner.Layout:
    """The layout of a config on a mesh with all axes."""
    chosen = runpy.run_path(str(config))["get_config"]()
    return learner.layout(chosen, sharding.make_mesh(AXES))


def listing(config: Path) -> str:
    """One line per parameter: path, shape, spec. Equal blocks share a line with their number."""
    found: collections.Counter[tuple[str, str, str]] = collections.Counter()
    placed = layout(config)
    for path, array in jax.tree_util.tree_leaves_with_path((placed.params, placed.variables)):
        _, _, name = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")
        name = re.sub(r"block_\d+", "block_*", name)
        spec = ", ".join(axis or "-" for axis in array.sharding.spec)
        found[name, "x".join(map(str, array.shape)) or "scalar", f"({spec})"] += 1
    rows = [
        (name if count == 1 else f"{name} ({count})", shape, spec)
        for (name, shape, spec), count in found.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {shape:{widths[1]}}  {spec}" for name, shape, spec in rows]
    mesh = ", ".join(f"{axis} {size}" for axis, size in AXES.items())
    source = config.relative_to(ROOT).as_posix()
    return "\n".join([f"# {source} on {mesh}; rewritten by: python -m tests.specs", *lines, ""])


def main() -> None:
    """Writes all golden files, and removes those without a config."""
    GOLDEN.mkdir(exist_ok=True)
    for stale in set(GOLDEN.glob("*.txt")) - {golden(config) for config in shipped()}:
        stale.unlink()
    for config in shipped():
        golden(config).write_text(listing(config), encoding="utf-8")
        print(golden(config).relative_to(ROOT))


if __name__ == "__main__":
    main()
