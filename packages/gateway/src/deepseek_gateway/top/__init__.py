"""`deepseek-gateway top`: what a gateway is doing now, in a terminal."""
