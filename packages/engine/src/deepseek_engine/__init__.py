"""Inference engine for dense and mixture-of-experts models."""
