"""Encoders of other libraries as ours, one file a family: what its config and tensors mean."""
