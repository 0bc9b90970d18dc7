"""Derived inputs, one file each: inputs that the step makes from others and from encodings."""
