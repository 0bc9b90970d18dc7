"""Presets that show by a short run that an ability works, on phantoms made for it."""

from collections.abc import Set

import ml_collections

from configs import pretrain


def start(chosen: Set[str]) -> ml_collections.ConfigDict:
    """What all of them start from: 300 steps, or with the variant `smoke` 20 of a tiny model."""
    if "smoke" in chosen:
        return pretrain.get_config("paper,smoke")
    config = pretrain.get_config("paper")
    config.update({"total_steps": 300, "eval_every": 0, "checkpoint": {"every": 300, "keep": 1}})
    return config
