"""The engines behind us."""
