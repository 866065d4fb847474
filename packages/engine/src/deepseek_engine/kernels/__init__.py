"""One operation a file; `reference/` holds the plain version that every fast one is tested against."""
