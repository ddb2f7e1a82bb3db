"""From a model and music to residuals on disk, and from there to shuffled batches."""
