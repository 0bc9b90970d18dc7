"""Losses of masks by the names that other trainers call; `mmrl.masks` holds them."""

from mmrl.masks import dice_loss, focal_loss

__all__ = ["dice_loss", "focal_loss"]
