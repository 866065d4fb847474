"""One's own account: password and sessions."""

from starlette.types import ASGIApp

from deepseek_gateway.web.accounts import AccountError, TooManyAttemptsError
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.records import SessionSource


async def page(page: Page) -> ASGIApp:
    """The page."""
    return await _page(page)


async def change_password(page: Page) -> ASGIApp:
    """Set a new password; every other session of the account ends."""
    session = page.signed_in
    if session.source is not SessionSource.PASSWORD:
        return await _page(page, 400, {"password": page.text("account.no_password")})
    old, new, again = (page.form.get(name, [""])[0] for name in ("old", "password", "again"))
    if new != again:
        return await _page(page, 422, {"again": page.text("account.differs")})
    accounts = page.web.accounts
    try:
        if await page.web.call(accounts.verify, session.account, old, page.address) is None:
            return await _page(page, 422, {"old": page.text("login.wrong")})
        await page.web.call(accounts.set_password, session.account, new, session.handle, by=page.principal)
    except TooManyAttemptsError as error:
        fault = page.text("login.too_many", minutes=max(1, round(error.wait_s / 60)))
        return await _page(page, 429, {"old": fault})
    except AccountError as error:
        return await _page(page, 422, {"password": page.text(error.key)})
    return page.redirect("/ui/account", done="password")


async def end_session(page: Page) -> ASGIApp:
    """End one of one's own sessions, or all others."""
    wanted, sessions = page.value("handle"), page.web.sessions
    for other in await page.web.call(sessions.of_account, page.signed_in):
        is_meant = other.handle == wanted if wanted else other.handle != page.signed_in.handle
        if is_meant:
            await page.web.call(sessions.end, other.handle)
    return page.redirect("/ui/account", done="sessions")


async def _page(page: Page, status: int = 200, faults: dict[str, str] | None = None) -> ASGIApp:
    sessions = await page.web.call(page.web.sessions.of_account, page.signed_in)
    return page.html("account.html", status, sessions=sessions, faults=faults or {})
