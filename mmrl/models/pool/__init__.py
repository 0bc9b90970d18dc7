"""Poolers, one file each: from the regions of an image, or the elements of a set, to one vector."""
