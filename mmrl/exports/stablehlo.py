"""Programs in StableHLO, which JAX alone loads: python load_programs.py in their folder.

weights.npz             parameters by path, arguments of all programs
NAME.stablehlo          a program of any batch size, for cpu, cuda and tpu
programs.json           what each program takes and gives, and the provenance
load_programs.py        reads the folder; needs neither flax nor mmrl
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from mmrl import encoder_folder, files
from mmrl.exports import load_programs, probes, programs, weights
from mmrl.exports.programs import Program
from mmrl.training import run
from mmrl.types import InputError

PLATFORMS = ("cpu", "cuda", "tpu")
STATED = "programs.json"


def write(trained: run.Trained, out: Path) -> tuple[tuple[str, ...], float]:
    """Writes the folder, which appears whole or not at all, once it gives the same encodings.

    Returns:
      Names of the programs, and the largest difference, see `probes.check`.

    Raises:
      InputError: `out` is there and not empty; a program gives other encodings; flatbuffers is not
        installed.
    """
    made, arrays = programs.make(trained)
    with files.whole_folder(out) as fresh:
        whole: dict[str, Any] = arrays
        with (fresh / encoder_folder.WEIGHTS).open("wb") as file:
            np.savez(file, **whole)
        stated = {}
        for program in made:
            name = f"{program.name}.stablehlo"
            exported = export(program, arrays)
            files.write(fresh / name, _serialised(exported))
            stated[program.name] = {
                "file": name,
                "sha256": files.sha256(fresh / name),
                "weights": list(program.weights),
                "inputs": {
                    key: {"dtype": str(one.dtype), "shape": [str(n) for n in one.shape]}
                    for key, one in arguments(program).items()
                },
                "output": [str(one) for one in exported.out_avals[0].shape],
            }
        description = weights.described(trained, fresh)
        content = {
            "programs": stated,
            "platforms": PLATFORMS,
            "grids": {name: list(grid) for name, grid in trained.predict.grids.items()},
            **description,
        }
        files.write_json(fresh / STATED, content)
        shutil.copy(load_programs.__file__, fresh)
        return tuple(stated), check(trained, made, fresh)


def arguments(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs of a program of any batch size, and of any size of its projector."""
    b, m, h = jax.export.symbolic_shape("b, m, h")
    shapes = programs.projector_shapes(program, {"m": m, "h": h})
    return {
        **{
            name: jax.ShapeDtypeStruct((b, *shape), jnp.dtype(dtype))
            for name, (dtype, shape) in program.inputs.items()
        },
        **{name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()},
    }


def export(program: Program, arrays: Mapping[str, np.ndarray]) -> jax.export.Exported:
    """A program for every platform; its weights are arguments."""
    own = {
        path: jax.ShapeDtypeStruct(arrays[path].shape, arrays[path].dtype)
        for path in program.weights
    }
    return jax.export.export(jax.jit(program.call), platforms=PLATFORMS)(own, arguments(program))


def check(trained: run.Trained, made: tuple[Program, ...], folder: Path) -> float:
    """Compares a folder with the encoders that it is from, see `probes.check`."""
    loaded = load_programs.Programs(folder)
    ours = probes.encoded(trained)
    theirs = {
        program.encodes: np.asarray(loaded(program.name, **inputs(trained, program)))
        for program in made
        if program.encodes
    }
    return probes.check("the program", {name: ours[name] for name in theirs}, theirs)


def inputs(trained: run.Trained, program: Program) -> dict[str, np.ndarray]:
    """The probes as a program takes them."""
    return probes.Probes(trained).of(program.name.partition(".")[0])


def _serialised(exported: jax.export.Exported) -> bytes:
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise InputError(
            f"--form=stablehlo needs flatbuffers: pip install flatbuffers ({error})"
        ) from None
