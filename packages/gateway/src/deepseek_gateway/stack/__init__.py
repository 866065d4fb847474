"""`deepseek-gateway up`: the engine as a child of the gateway."""
