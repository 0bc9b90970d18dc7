"""One file per training objective: a pure function and the module that owns its parameters."""
