"""The engine behind HTTP. The only folder that knows HTTP; needs the `[server]` extra."""
