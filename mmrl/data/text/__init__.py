"""Report text: cleaning, sentences and sections, tokens."""
