"""Image files to pixels: decoding, resizing, augmentation, masks."""
