"""Corpora as distributed to corpora as trained on: shards, an index, a manifest."""
