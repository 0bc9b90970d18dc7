"""mmrl: pretrain, judge and ship biomedical image+report encoders in JAX."""

import os
from typing import TYPE_CHECKING, Any, Literal

from mmrl import interrupts
from mmrl.version import __version__ as __version__

if TYPE_CHECKING:
    from mmrl.encoder import Encoder

interrupts.arm_command(os.path.dirname(__file__))


def load(
    path: str,
    *,
    step: int | Literal["best"] | None = None,
    batch_size: int = 64,
    device: Any = None,
    colour: bool | None = None,
) -> "Encoder":
    """The encoders of a run, of an exported or converted folder, or of hf://OWNER/NAME.

    See `mmrl.encoder.Encoder.load`. Imported on call, so that `import mmrl` stays quick.
    """
    from mmrl.encoder import Encoder

    return Encoder.load(path, step=step, batch_size=batch_size, device=device, colour=colour)
