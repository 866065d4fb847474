"""Static files."""

from starlette.types import ASGIApp

from deepseek_gateway.errors import ApiError
from deepseek_gateway.web.page import Page


async def asset(page: Page) -> ASGIApp:
    """One file.

    Raises:
        ApiError: 404, there is none of this name.
    """
    response = page.web.assets.response(page.params["version"], page.params["path"])
    if response is None:
        raise ApiError(404, page.text("error.not_found"), code="not_found")
    return response


async def nothing(page: Page) -> ASGIApp:
    """What is at no page's path.

    Raises:
        ApiError: 404.
    """
    raise ApiError(404, page.text("error.not_found"), code="not_found")
