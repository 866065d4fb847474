"""Sign in with a local account, and out again."""

from starlette.responses import Response
from starlette.types import ASGIApp

from deepseek_gateway.web.accounts import TooManyAttemptsError
from deepseek_gateway.web.page import SESSION_COOKIE, Page
from deepseek_gateway.web.records import Role, SessionSource

HOME = "/ui/"


async def form(page: Page) -> ASGIApp:
    """The form."""
    if page.session is not None:
        return page.redirect(own_path(page.query("next")))
    return await _form(page, next_path=page.query("next"))


async def sign_in(page: Page) -> ASGIApp:
    """Check the password and begin a session."""
    name, password = page.value("name"), page.form.get("password", [""])[0]
    try:
        account = await page.web.call(page.web.accounts.verify, name, password, page.address)
    except TooManyAttemptsError as error:
        minutes = max(1, round(error.wait_s / 60))
        fault = page.text("login.too_many", minutes=minutes)
        return await _form(page, 429, name=name, fault=fault, next_path=page.value("next"))
    if account is None:
        fault = page.text("login.wrong")
        return await _form(page, 401, name=name, fault=fault, next_path=page.value("next"))
    return await begin_session(
        page, account.name, account.role, SessionSource.PASSWORD, page.redirect(own_path(page.value("next")))
    )


async def sign_out(page: Page) -> ASGIApp:
    """End the session."""
    await page.web.call(page.web.sessions.end, page.signed_in.handle)
    response = page.redirect("/ui/login")
    page.drop_cookie(response, SESSION_COOKIE)
    return response


async def begin_session(page: Page, account: str, role: Role, source: SessionSource, response: Response) -> Response:
    """Begin a session with an answer that sets its cookie. One that the browser had before ends."""
    if page.session is not None:
        await page.web.call(page.web.sessions.end, page.session.handle)
    agent = page.request.headers.get("user-agent", "")
    cookie, session = await page.web.call(page.web.sessions.begin, account, role, source, agent, page.request_id)
    page.set_cookie(response, SESSION_COOKIE, cookie, round(session.expires - session.created))
    return response


def own_path(path: str) -> str:
    """A path to go on to, if it is one of ours; else the overview."""
    is_ours = path.startswith("/ui/") and "\\" not in path and path.isprintable()
    return path if is_ours else HOME


async def _form(page: Page, status: int = 200, *, name: str = "", fault: str = "", next_path: str = "") -> ASGIApp:
    accounts = await page.web.call(page.gateway.store.web.accounts)
    values = {"name": name, "fault": fault, "next_path": next_path}
    has_oidc = page.web.oidc is not None
    return page.html("login.html", status, **values, has_account=bool(accounts), has_oidc=has_oidc)
