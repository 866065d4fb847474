"""The administration pages: rendered here, with a little script in the browser."""
