"""Sparse autoencoders: the inference rule, training, metrics, and the files that others read."""
