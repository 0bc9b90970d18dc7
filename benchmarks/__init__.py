"""Benchmarks. Each prints its settings and the figures that README and docs quote."""
