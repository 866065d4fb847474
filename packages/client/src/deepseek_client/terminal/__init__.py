"""What the `deepseek` program is made of: the conversation, its lines, its look, and what it remembers."""
