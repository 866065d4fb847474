"""HTTP in front of the engine; needs the `server` extra."""
