"""Who did what, and what became of every request: a hash-chained log, traces, and kept texts that can be erased."""
