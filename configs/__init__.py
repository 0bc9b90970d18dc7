"""Presets: one file each, with one `get_config`."""
