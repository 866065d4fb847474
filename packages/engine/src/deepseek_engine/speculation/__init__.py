"""Guessing tokens ahead, so that one step may verify several: plain Python, without torch."""
