"""What a key may use: plain arithmetic over a clock that is handed in."""
