"""Evidence that does not come from the model itself."""
