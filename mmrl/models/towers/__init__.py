"""Kinds of tower, one file each: an encoder with its heads, from inputs to named features."""
