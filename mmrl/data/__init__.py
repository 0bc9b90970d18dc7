"""Records, text and images: everything up to the numpy batch."""
