"""Stands in until mmrl.data.duplicates is there."""

import cv2
import numpy as np


def perceptual_hash(image: np.ndarray) -> int:
    """64 bits."""
    small = cv2.resize(image.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA).ravel()
    return sum(1 << i for i, bit in enumerate(small > np.median(small)) if bit)
