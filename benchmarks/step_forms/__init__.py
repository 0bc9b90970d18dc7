"""The training step in several forms, for `benchmarks.step`: workload, JAX forms, PyTorch forms."""
