"""What the scheduler is made of: who waits and in which order, each tenant's share, the token budget of a step."""
