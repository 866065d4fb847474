"""What is in force: the compiled configuration as one immutable snapshot, and how it is replaced."""
