"""The word filter: what may not pass in either direction, and what stored text must not show."""
