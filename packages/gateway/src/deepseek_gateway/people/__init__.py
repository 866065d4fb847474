"""Whom keys belong to: organisations, their teams and their users."""
