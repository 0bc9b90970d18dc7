"""One short preset for each published system, or part of one, that the shared blocks express."""

import ml_collections

from configs import pretrain


def tiles(*, smoke: bool) -> ml_collections.ConfigDict:
    """Grey tiles for an image tower alone, and a probe: what presets without text share.

    The probe asks for the shape of nuclei alone, as first weights tell their number. No tile has a
    gland: pixels tell its bright space, and training then finds little else.
    """
    config = pretrain.of_300_steps(smoke=smoke)
    config.data.update({"source": "stained_tiles", "colour": "grey"})
    config.data.prevalence = {"gland": 0.0}
    config.data.label_names = ("elongated shape",)
    image = config.towers.image
    config.towers = {"image": image}
    if not smoke:
        config.batch_size = 64
        config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 30})
        config.data.update({"length": 4000, "render_size": 48})
        image.update({"size": 48, "width": 64, "depth": 2, "num_heads": 4})
    config.validation_loss = True
    config.tensorboard = False
    config.evaluators = {"probe": {"methods": ("knn",), "bootstrap": 0}}
    return config


def crops(config: ml_collections.ConfigDict) -> None:
    """Two wide crops, and two local ones of half their side, with other brightness and contrast."""
    changes = {"name": "crops", "num_crops": 2, "brightness": 0.2, "contrast": 0.3}
    side = config.towers.image.size // 2
    config.inputs.wide = {**changes, "crop_scale": (0.5, 1.0)}
    config.inputs.local = {**changes, "crop_scale": (0.2, 0.5), "crop_size": side}
