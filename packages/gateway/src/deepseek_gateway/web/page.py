"""One request for a page: who asks, in which language, with which form; and the answers it can get."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import ADMIN, Scope
from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.routes.access import address_of
from deepseek_gateway.web.messages import Language, Messages, preferred_language
from deepseek_gateway.web.multipart import Upload, read_multipart
from deepseek_gateway.web.records import Role, Session
from deepseek_gateway.web.refusals import PageError
from deepseek_gateway.web.rendered import Rendered
from deepseek_gateway.web.services import Web
from deepseek_gateway.web.sessions import form_token, is_form_token

SESSION_COOKIE, VISITOR_COOKIE = "dsg_session", "dsg_visitor"
LANGUAGE_COOKIE, THEME_COOKIE = "dsg_language", "dsg_theme"
THEMES = ("auto", "light", "dark")
MAX_FORM_FIELDS = 500
YEAR_S = 365 * 86400

NAVIGATION = (
    ("overview", "/ui/"),
    ("playground", "/ui/playground"),
    ("usage", "/ui/usage"),
    ("keys", "/ui/keys"),
    ("people", "/ui/people"),
    ("limits", "/ui/limits"),
    ("balances", "/ui/balances"),
    ("requests", "/ui/requests"),
    ("words", "/ui/words"),
    ("review", "/ui/review"),
    ("audit", "/ui/audit"),
    ("config", "/ui/config"),
)


@dataclass(slots=True)
class Page:
    """See the module."""

    web: Web
    request: Request
    pattern: str
    params: Mapping[str, str]
    session: Session | None = None
    form: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    files: dict[str, Upload] = field(default_factory=dict[str, Upload])
    _visitor: str | None = None

    @property
    def gateway(self) -> Gateway:
        """The gateway."""
        return self.web.gateway

    @property
    def language(self) -> Language:
        """The language that was chosen, else the one that the browser wants."""
        chosen = self.request.cookies.get(LANGUAGE_COOKIE)
        if chosen in set(Language):
            return Language(chosen)
        return preferred_language(self.request.headers.get("accept-language", ""))

    @property
    def theme(self) -> str:
        """`auto`, `light` or `dark`."""
        chosen = self.request.cookies.get(THEME_COOKIE, "auto")
        return chosen if chosen in THEMES else "auto"

    @property
    def is_secure(self) -> bool:
        """Whether the browser's connection is encrypted, here or at the proxy in front."""
        return self.request.url.scheme == "https" or self.gateway.settings.public_url.startswith("https:")

    @property
    def signed_in(self) -> Session:
        """The session, on pages that need one."""
        assert self.session is not None
        return self.session

    @property
    def principal(self) -> Principal:
        """Who is signed in, for the services."""
        session = self.signed_in
        scopes = ADMIN if session.role is Role.ADMIN else frozenset({Scope.ADMIN_READ})
        return Principal("session", session.account, scopes, request_id=self.request_id)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return context_of(self.request.scope).request_id

    @property
    def address(self) -> str:
        """Where the browser is, as far as our own proxies tell."""
        return str(address_of(self.gateway, self.request.scope) or "unknown")

    def may(self, role: Role | str) -> bool:
        """Whether who asks may do what a role may."""
        return self.session is not None and self.session.role.covers(Role(role))

    @property
    def here(self) -> str:
        """This page's own path and query: where to come back to."""
        query = self.request.url.query
        return self.request.url.path + (f"?{query}" if query else "")

    @property
    def form_page(self) -> str:
        """The page with the form that was sent, as far as the browser says."""
        referrer = urlsplit(self.request.headers.get("referer", ""))
        is_ours = referrer.netloc == self.request.headers.get("host") and referrer.path.startswith("/ui/")
        return f"{referrer.path}?{referrer.query}" if is_ours else "/ui/"

    @property
    def messages(self) -> Messages:
        """The catalogue."""
        return self.web.messages

    @property
    def base_url(self) -> str:
        """The gateway's URL, as callers write it."""
        return (self.gateway.settings.public_url or str(self.request.base_url)).rstrip("/")

    @property
    def section(self) -> str:
        """The entry of the navigation that this page belongs to."""
        name = self.pattern.removeprefix("/ui/").partition("/")[0].partition(".")[0]
        return name or "overview"

    @property
    def navigation(self) -> tuple[tuple[str, str], ...]:
        """Entries of the navigation: message key and path."""
        return NAVIGATION

    @property
    def done(self) -> str:
        """What the last form did, to be told once."""
        key = f"done.{self.query('done')}"
        return self.text(key) if self.web.messages.has(key) else ""

    def script_messages(self) -> str:
        """The texts that scripts show, as JSON."""
        return orjson.dumps(self.web.messages.under(self.language, "script.")).decode()

    def text(self, key: str, **values: object) -> str:
        """A message in the page's language."""
        return self.web.messages.text(self.language, key, **values)

    def query(self, name: str, default: str = "") -> str:
        """A parameter of the URL; its beginning if it is absurdly long."""
        return self.request.query_params.get(name, default)[:500]

    def value(self, name: str, default: str = "") -> str:
        """A field of the form, without blanks around it."""
        return self.form.get(name, [default])[0].strip()

    def values(self, name: str) -> list[str]:
        """All values of a field that may stand in a form several times."""
        return self.form.get(name, [])

    async def read_form(self, max_bytes: int) -> None:
        """Read the form of a POST.

        Raises:
            ApiError: 403, it is not a form of ours; 413 or 400, it cannot be read.
        """
        kind = self.request.headers.get("content-type", "")
        if kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
            body = await self._body(max_bytes)
            try:
                pairs = await self._pairs(kind, body)
            except ValueError as error:
                raise ApiError(400, f"the form cannot be read: {error}") from None
            for name, value in pairs:
                self.form.setdefault(name, []).append(value)
        self._check_form_token()

    async def _body(self, max_bytes: int) -> bytes:
        try:
            timeout_s = self.gateway.settings.body_timeout_s
            return await read_body(self.request.scope, self.request.receive, max_bytes, timeout_s)
        except ApiError as error:
            if error.status != 413:
                raise
            size = f"{max_bytes / 2**20:g} MiB" if max_bytes >= 2**20 else f"{max_bytes // 1024} KiB"
            message = self.text("error.too_large", size=size)
            raise PageError(413, message, code=error.code, headers=error.headers) from None

    async def _pairs(self, kind: str, body: bytes) -> list[tuple[str, str]]:
        if not kind.startswith("multipart/form-data"):
            return parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
        parts = await self.web.call(read_multipart, kind, body)
        self.files.update(parts.files)
        return parts.texts

    def _check_form_token(self) -> None:
        headers = self.request.headers
        given = self.value("form_token") or headers.get("x-form-token", "")
        is_ours = headers.get("sec-fetch-site", "same-origin") in {"same-origin", "none"}
        cookie = self.request.cookies.get(SESSION_COOKIE if self.session is not None else VISITOR_COOKIE, "")
        if not (is_ours and cookie and is_form_token(self.web.secret, cookie, given)):
            raise PageError(403, self.text("error.form_token"), code="form_token")

    def form_token(self) -> str:
        """The token for the forms of this page; visitors get a cookie for it with the answer."""
        if self.session is not None:
            return form_token(self.web.secret, self.request.cookies[SESSION_COOKIE])
        cookie = self.request.cookies.get(VISITOR_COOKIE)
        if cookie is None:
            self._visitor = cookie = self._visitor or secrets.token_urlsafe(24)
        return form_token(self.web.secret, cookie)

    def html(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page, rendered when it is sent."""

        def text() -> str:
            return self.web.templates.get_template(template).render(page=self, t=self.text, **values)

        return Rendered(lambda: self.web.call(text), status, self._keep_visitor)

    def _keep_visitor(self, response: Response) -> None:
        """The cookie that a form's token belongs to, where rendering made one."""
        if self._visitor is not None:
            self.set_cookie(response, VISITOR_COOKIE, self._visitor, None)

    def with_query(self, **changes: object) -> str:
        """This page's path and query, with some parameters replaced."""
        query = {**dict(self.request.query_params), **{name: str(value) for name, value in changes.items()}}
        return f"{self.request.url.path}?{urlencode(query)}"

    def redirect(self, path: str, **query: str) -> Response:
        """Go on to another page, by GET."""
        return RedirectResponse(f"{path}?{urlencode(query)}" if query else path, 303)

    def set_cookie(
        self, response: Response, name: str, value: str, max_age_s: int | None, *, lax: bool = False
    ) -> None:
        """A cookie for the pages alone."""
        response.set_cookie(
            name,
            value,
            max_age_s,
            path="/ui",
            secure=self.is_secure,
            httponly=True,
            samesite="lax" if lax else "strict",
        )

    def drop_cookie(self, response: Response, name: str) -> None:
        """Take a cookie back. Some clients go by its age, others by its date."""
        response.delete_cookie(name, path="/ui", secure=self.is_secure, httponly=True, samesite="strict")
