"""The phantom corpus: procedural chest radiographs with reports and exact truth."""
