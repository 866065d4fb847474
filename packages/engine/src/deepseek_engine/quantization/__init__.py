"""Weights in fewer bits: what is stored, how a product is taken, and what it costs in error."""
