"""One file per evaluation; each reads a checkpointed state and returns `Results`."""
