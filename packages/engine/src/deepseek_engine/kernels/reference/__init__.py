"""Slow, obvious versions of every kernel."""
