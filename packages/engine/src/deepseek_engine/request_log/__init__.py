"""Every request as the core got it and how it ended, in a file that can be run again: writing, reading, replaying."""
