"""Image and text encoders and the pair they form."""
