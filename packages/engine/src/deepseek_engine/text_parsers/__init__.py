"""An answer's text to reasoning, content and tool calls, as it comes."""
