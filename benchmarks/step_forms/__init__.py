"""Implementations of the training step, in JAX and PyTorch, that `benchmarks.step` compares."""
