"""What each path does: parse, call, answer."""
