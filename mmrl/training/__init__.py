"""The one trainer: its step, its loop, and what a run keeps on disk."""
