"""Templates: strict about what they use, and everything that they print is escaped."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from deepseek_gateway.web import formats
from deepseek_gateway.web.assets import Assets


def load_templates(assets: Assets) -> Environment:
    """The environment of the pages' templates."""
    folder = files("deepseek_gateway.web").joinpath("templates")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    filters: dict[str, Any] = environment.filters  # pyright: ignore[reportAssignmentType]  jinja narrows it to its own
    filters.update(
        {
            "number": formats.number,
            "short": formats.short,
            "ms": formats.milliseconds,
            "percent": formats.percent,
            "moment": formats.moment,
            "money": formats.money,
            "iso": formats.iso,
            "day": formats.day,
        }
    )
    shared: dict[str, Any] = environment.globals
    shared["asset"] = assets.url
    return environment
