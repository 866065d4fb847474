"""Gateway for DeepSeek engines: keys, limits, an exact usage ledger and a streaming relay."""

__version__ = "0.1.0"
