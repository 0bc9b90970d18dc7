"""mmrl: pretrain, judge and ship biomedical image+report encoders in JAX."""

from typing import Any

__version__ = "0.1.0"


def load(workdir: str, *, step: int | None = None) -> Any:
    """The trained encoders of a run: `embed_images(...)` and `embed_texts(...)`.

    See `mmrl.encoder.Encoder`. Imported on call, so that `import mmrl` stays quick.
    """
    from mmrl.encoder import Encoder

    return Encoder.load(workdir, step=step)
