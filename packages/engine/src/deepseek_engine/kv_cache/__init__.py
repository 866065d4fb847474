"""Paged KV cache: who owns which block, which blocks hold what, and the tensors."""
