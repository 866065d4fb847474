"""A browser without a screen: cookies, forms, and the token that forms carry."""

import re
from dataclasses import dataclass
from html import unescape
from typing import Any

import aiohttp

from deepseek_gateway.testing.caller import Reply

PASSWORD = "correct horse battery staple"  # noqa: S105  of tests
_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]+)"')


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who visits the pages of a gateway. `session` must keep cookies of IP addresses."""

    session: aiohttp.ClientSession
    url: str

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        """A page; redirects are not followed."""
        async with self.session.get(f"{self.url}{path}", headers=headers, allow_redirects=False) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def post(self, path: str, headers: dict[str, str] | None = None, **form: Any) -> Reply:
        """Send a form as it is."""
        sent = self.session.post(f"{self.url}{path}", data=form, headers=headers, allow_redirects=False)
        async with sent as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def submit(self, path: str, *, page: str | None = None, **form: Any) -> Reply:
        """Open a page, take the token of its form, and send the form."""
        token = form_token((await self.get(page or path)).body)
        fields: dict[str, Any] = {"form_token": token, **form}
        return await self.post(path, None, **fields)

    async def sign_in(self, name: str = "admin", password: str = PASSWORD) -> Reply:
        """Sign in."""
        return await self.submit("/ui/login", name=name, password=password)


def form_token(body: bytes) -> str:
    """The token in a page.

    Raises:
        ValueError: there is none.
    """
    match = _TOKEN.search(body.decode())
    if match is None:
        raise ValueError(f"no form in: {body.decode()[:500]}")
    return unescape(match[1])
