"""Poolers, one file each: from the regions of an image to one vector."""
