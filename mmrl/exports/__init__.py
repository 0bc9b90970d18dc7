"""Forms in which encoders leave mmrl, one file a form."""
