"""Encoders under the names of other libraries, one file a family: its config and its tensors."""
