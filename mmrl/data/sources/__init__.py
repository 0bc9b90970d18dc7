"""One file per corpus; each yields `mmrl.types.Record`."""
