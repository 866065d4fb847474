"""Tensor parallelism: one model on several ranks, each with a slice of every layer."""
