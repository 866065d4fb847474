"""Who may go now, and who waits: the admission queue and load shedding."""
