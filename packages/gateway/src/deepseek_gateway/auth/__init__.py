"""Who calls: API keys and their look-up."""
