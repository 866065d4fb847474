"""Functions that a model may call: their schemas, and the loop that calls them."""
