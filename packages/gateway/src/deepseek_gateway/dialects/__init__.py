"""Other makers' APIs, translated to the engine's chat and back."""
