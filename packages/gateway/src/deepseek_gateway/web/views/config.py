"""The configuration in force: each setting with its source, the engines and models, and the last reading."""

from starlette.types import ASGIApp

from deepseek_gateway.config.effective import effective_settings, waiting_for_a_start
from deepseek_gateway.config.load import LoadedConfig
from deepseek_gateway.config.sources import Sources
from deepseek_gateway.settings import LIVE, Settings
from deepseek_gateway.web.page import Page

TABLES = frozenset({"upstreams", "models"})
"""Settings that are shown as tables of their own."""


async def page(page: Page) -> ASGIApp:
    """All of it."""
    in_force = page.gateway.settings
    loaded: LoadedConfig[Settings] = page.gateway.config_loaded or LoadedConfig(None, Sources(None), ())
    waiting = [] if loaded.settings is None else waiting_for_a_start(LIVE, in_force, loaded.settings)
    settings = effective_settings(Settings, loaded, in_force)
    shown = [setting for setting in settings if setting.name not in TABLES]
    return page.html(
        "config.html",
        version=page.gateway.snapshot.version,
        path=loaded.path,
        file="" if loaded.path is None else loaded.path.name,
        last=page.gateway.config_read,
        given=[setting for setting in shown if setting.is_given],
        others=[setting for setting in shown if not setting.is_given],
        waiting=frozenset(waiting),
        upstreams=in_force.upstreams,
        models=in_force.models,
    )
