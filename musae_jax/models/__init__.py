"""Flax Linen ports of the models that make and hear music, one architecture per file."""
