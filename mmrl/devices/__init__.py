"""Meshes, shardings and processes: everything that knows which hardware a run uses."""
