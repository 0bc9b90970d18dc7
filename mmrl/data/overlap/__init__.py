"""Duplicates within a corpus, and leaks between splits and corpora."""
