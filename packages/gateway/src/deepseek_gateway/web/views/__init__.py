"""What each page shows: read, decide, render."""

from deepseek_gateway.web.views import account, keys, login, overview, playground, preferences, static, usage

__all__ = ["account", "keys", "login", "overview", "playground", "preferences", "static", "usage"]
