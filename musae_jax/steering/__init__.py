"""Turning features into controls, and measuring what the controls do."""
