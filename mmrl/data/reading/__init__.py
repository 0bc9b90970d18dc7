"""Files of a corpus to records: tables, splits, rejects, prepared shards."""
