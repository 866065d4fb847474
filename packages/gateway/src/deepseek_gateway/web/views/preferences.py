"""Language and theme, kept in cookies of a year."""

from starlette.types import ASGIApp

from deepseek_gateway.web.messages import Language
from deepseek_gateway.web.page import LANGUAGE_COOKIE, THEME_COOKIE, THEMES, YEAR_S, Page
from deepseek_gateway.web.views.login import own_path


async def choose(page: Page) -> ASGIApp:
    """Keep a choice and go back to where it was made."""
    response = page.redirect(own_path(page.value("next")))
    language, theme = page.value("language"), page.value("theme")
    if language in set(Language):
        page.set_cookie(response, LANGUAGE_COOKIE, language, YEAR_S)
    if theme in THEMES:
        page.set_cookie(response, THEME_COOKIE, theme, YEAR_S)
    return response
