"""Inputs of a batch, one file each: the arrays <input>.<array> that towers and objectives read."""
