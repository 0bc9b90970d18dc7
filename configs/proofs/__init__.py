"""Presets that show by a short run that an ability works, on phantoms made for it."""

import ml_collections


def small(config: ml_collections.ConfigDict, *, batch_size: int, length: int) -> None:
    """Many images of 32 pixels for an encoder of two blocks, which sees more of them in a run."""
    config.batch_size = batch_size
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 30})
    config.data.update({"length": length, "render_size": 32})
    config.towers.image.update({"size": 32, "depth": 2})
