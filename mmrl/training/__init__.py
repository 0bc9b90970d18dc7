"""Training: the step, the loop, and the files of a run directory."""
