"""The summary page of a run and the figures on it."""
