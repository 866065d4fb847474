"""`deepseek-gateway bench`: the engine directly, this gateway, and LiteLLM, side by side on one machine."""
