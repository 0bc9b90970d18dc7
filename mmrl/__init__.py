"""mmrl: pretrain, judge and ship biomedical image+report encoders in JAX."""

from typing import Any, Literal

from mmrl.version import __version__ as __version__


def load(folder: str, *, step: int | Literal["best"] | None = None) -> Any:
    """The encoders of a run, or of a converted folder: `embed_images(...)`, `embed_texts(...)`.

    See `mmrl.encoder.Encoder`. Imported on call, so that `import mmrl` stays quick.
    """
    from mmrl.encoder import Encoder

    return Encoder.load(folder, step=step)
