"""Which engine gets a request: decisions in plain Python, over a clock and figures that are handed in."""
