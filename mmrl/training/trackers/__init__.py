"""One tracker per file: a service, or a folder of files, to which a run sends what it measures."""
