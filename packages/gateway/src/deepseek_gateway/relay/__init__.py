"""From an engine to a caller: bytes as they are, usage read as they pass."""
