"""Command-line benchmarks."""
