"""Fusions, one file each: modules that turn encodings of several towers into further ones."""
