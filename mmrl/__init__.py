"""mmrl: pretrain, judge and ship biomedical image+report encoders in JAX."""

from typing import Any

from flax import nnx

__version__ = "0.1.0"

# Parameters carry logical axis names that `mmrl.sharding` resolves; without this, creating one
# outside a mesh context is an error.
nnx.use_eager_sharding(False)


def load(workdir: str, *, step: int | None = None) -> Any:
    """The trained encoders of a run: `embed_images(...)` and `embed_texts(...)`.

    See `mmrl.encoder.Encoder`. Imported on call, so that `import mmrl` stays quick.
    """
    from mmrl.encoder import Encoder

    return Encoder.load(workdir, step=step)
