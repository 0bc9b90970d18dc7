"""Training objectives, one file each: a pure function and the module that owns its parameters.

`all_pairs`, `tiles` and `local_kernel` compute losses over all pairs of a large batch.
"""
