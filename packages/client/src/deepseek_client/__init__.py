"""Typed SDK for DeepSeek servers."""
