"""Text encoders, one file each, and the packing of texts."""
