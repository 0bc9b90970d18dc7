"""One short preset for each published system, or part of one, that the shared blocks express."""
