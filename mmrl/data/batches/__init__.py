"""Records to training batches and held-out examples."""
