"""Run directories and corpora on object stores: local folders that follow them, see docs/cloud.md.

`store` speaks to the store, `place` says where the local copies lie, `lease` keeps two writers
apart, `mirror` makes both sides equal, and `opened` is what commands and sources use.
"""
