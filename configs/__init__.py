"""Experiments: one file, one `get_config`."""
