"""Static files."""

from starlette.types import ASGIApp

from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import PageError


async def asset(page: Page) -> ASGIApp:
    """One file.

    Raises:
        ApiError: 404, there is none of this name.
    """
    response = page.web.assets.response(page.params["version"], page.params["path"])
    if response is None:
        raise PageError(404, page.text("error.not_found"), code="not_found")
    return response


async def nothing(page: Page) -> ASGIApp:
    """What is at no page's path.

    Raises:
        ApiError: 404.
    """
    raise PageError(404, page.text("error.not_found"), code="not_found")
