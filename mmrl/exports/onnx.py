"""Programs in ONNX, by jax2onnx, with their weights inside.

jax2onnx wants another version of Orbax than training does, so it has an environment of its own:
requirements-onnx.txt. There the command reads the folder of an encoder.
"""

import importlib.util
import unittest.mock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl import files
from mmrl.exports import probes, programs, stablehlo, weights
from mmrl.exports.programs import Program
from mmrl.training import run
from mmrl.types import InputError

PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
# onnxruntime orders sums otherwise than XLA.
TOLERANCE = 1e-4
_MOST = 2**31 - 2**20  # bytes of a message of protobuf, less what the graph takes


def missing() -> tuple[str, ...]:
    """The packages that are not installed."""
    return tuple(name for name in PACKAGES if importlib.util.find_spec(name) is None)


def write(trained: run.Trained, out: Path) -> tuple[tuple[str, ...], float]:
    """Writes NAME.onnx of each program without projector; see `stablehlo.write`.

    Raises:
      InputError: a package is not installed; a program gives other encodings.
    """
    if absent := missing():
        raise InputError(
            f"--form=onnx needs {', '.join(absent)}; expected the environment of "
            "requirements-onnx.txt (docs/exporting.md)"
        )
    import onnx

    made, arrays = programs.make(trained)
    if (size := sum(one.nbytes for one in arrays.values())) >= _MOST:
        raise InputError(
            f"--form=onnx: weights of {size:,} bytes; a file of ONNX holds at most {_MOST:,}; "
            "expected --form=stablehlo"
        )
    chosen = [program for program in made if not program.projector]
    ours, theirs = probes.encoded(trained), {}
    with files.whole_folder(out) as fresh:
        for program in chosen:
            onnx.save(_converted(program, arrays), fresh / f"{program.name}.onnx")
            found = _run(fresh / f"{program.name}.onnx", stablehlo.inputs(trained, program))
            if program.encodes:
                theirs[program.encodes] = found
        description = {
            "programs": [one.name for one in chosen],
            **weights.described(trained, fresh),
        }
        files.write_json(fresh / stablehlo.STATED, description)
        kept = {name: ours[name] for name in theirs}
        return tuple(one.name for one in chosen), probes.check("ONNX", kept, theirs, TOLERANCE)


def _converted(program: Program, arrays: Mapping[str, np.ndarray]) -> Any:
    """The model of a program, whose batch axis is free."""
    import jax2onnx

    own = {path: arrays[path] for path in program.weights}
    dropout = nnx.Dropout.__call__

    def call(*given: jax.Array) -> jax.Array:
        # jax2onnx puts its own dropout in place, which does not take all arguments.
        with unittest.mock.patch.object(nnx.Dropout, "__call__", dropout):
            return program.call(own, dict(zip(program.inputs, given, strict=True)))

    inputs = [
        jax.ShapeDtypeStruct(("B", *shape), jnp.dtype(dtype))
        for dtype, shape in program.inputs.values()
    ]
    name = program.name.replace(".", "_")
    return jax2onnx.to_onnx(
        call, inputs, model_name=name, input_names=list(program.inputs), output_names=[name]
    )


def _run(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, dict(inputs))
    return np.asarray(found)
