"""One typed method for each endpoint, sync and async side by side. The methods are shells: `core` does the work."""
