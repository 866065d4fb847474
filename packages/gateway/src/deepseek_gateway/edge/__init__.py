"""Between the server and the routes: request bodies, answers, and the watch over a caller."""
