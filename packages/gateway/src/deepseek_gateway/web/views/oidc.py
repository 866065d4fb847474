"""Sign in with the organisation's own accounts."""

import base64
import hashlib
import hmac
import logging
import time
from dataclasses import asdict
from typing import Any

import orjson
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

from deepseek_gateway.web.oidc import Attempt, OidcClient, OidcError
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.records import SessionSource
from deepseek_gateway.web.refusals import PageError
from deepseek_gateway.web.views.login import begin_session, own_path

logger = logging.getLogger(__name__)

ATTEMPT_COOKIE = "dsg_oidc"
ATTEMPT_S = 600


async def begin(page: Page) -> ASGIApp:
    """Send the browser to the issuer. What must come back is in a signed cookie: nothing is kept for strangers."""
    client, attempt = _client(page), Attempt.begin()
    try:
        url = await client.authorization_url(attempt, _redirect_uri(page))
    except OidcError as error:
        logger.warning("sign-in: %s", error)
        raise PageError(502, page.text("login.oidc_unreachable"), code="oidc") from None
    response = RedirectResponse(url, 303)
    kept = {**asdict(attempt), "next": own_path(page.query("next")), "until": time.time() + ATTEMPT_S}
    # Lax: the issuer leads back here, and Strict cookies do not come along.
    page.set_cookie(response, ATTEMPT_COOKIE, _signed(page, kept), ATTEMPT_S, lax=True)
    return response


async def finish(page: Page) -> ASGIApp:
    """Take the browser back from the issuer."""
    client = _client(page)
    kept = _verified(page, page.request.cookies.get(ATTEMPT_COOKIE, ""))
    query = page.request.query_params
    if kept is None or not hmac.compare_digest(kept["state"].encode(), query.get("state", "").encode()):
        raise PageError(400, page.text("login.oidc_stale"), code="oidc")
    if "error" in query or "code" not in query or query.get("iss", client.config.issuer) != client.config.issuer:
        logger.warning("sign-in: the issuer says %.200r", query.get("error"))
        raise PageError(403, page.text("login.oidc_refused"), code="oidc")
    attempt = Attempt(kept["state"], kept["nonce"], kept["verifier"])
    try:
        person = await client.redeem(query["code"], attempt, _redirect_uri(page))
    except OidcError as error:
        logger.warning("sign-in: %s", error)
        raise PageError(403, page.text("login.oidc_refused"), code="oidc") from None
    if person.role is None:
        logger.warning("sign-in: %s has no role: no value of %s is mapped", person.name, client.config.role_claim)
        raise PageError(403, page.text("login.oidc_no_role", name=person.name), code="oidc")
    # Not a redirect: the session's Strict cookie would not come along on one that another site began.
    response = page.html("signed_in.html", next_path=own_path(kept["next"]))
    page.drop_cookie(response, ATTEMPT_COOKIE)
    return await begin_session(page, person.name, person.role, SessionSource.OIDC, response)


def _client(page: Page) -> OidcClient:
    if page.web.oidc is None:
        raise PageError(404, page.text("error.not_found"), code="not_found")
    return page.web.oidc


def _redirect_uri(page: Page) -> str:
    return f"{page.base_url}/ui/login/callback"


def _signed(page: Page, value: dict[str, Any]) -> str:
    body = base64.urlsafe_b64encode(orjson.dumps(value)).decode()
    return f"{body}.{_signature(page, body)}"


def _verified(page: Page, cookie: str) -> dict[str, Any] | None:
    body, _, signature = cookie.rpartition(".")
    if not hmac.compare_digest(signature.encode(), _signature(page, body).encode()):
        return None
    value: dict[str, Any] = orjson.loads(base64.urlsafe_b64decode(body))
    return value if value["until"] > time.time() else None


def _signature(page: Page, body: str) -> str:
    return hmac.new(page.web.secret, b"oidc:" + body.encode(), hashlib.sha256).hexdigest()
