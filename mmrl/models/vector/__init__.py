"""Encoders of vectors, one file each."""
