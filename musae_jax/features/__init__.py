"""What each feature of a dictionary does over a corpus: where it is active, how often, and in which clips most."""
