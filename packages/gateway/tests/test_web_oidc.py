"""Sign in with OpenID Connect, against an issuer on loopback."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.settings import load_settings
from deepseek_gateway.testing.command import Command
from deepseek_gateway.testing.issuer import Issuer
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import Stack, running_stack
from deepseek_gateway.testing.visitor import Visitor
from deepseek_gateway.web.accounts import AccountError, checked_name
from deepseek_gateway.web.oidc import Attempt, oidc_config

STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@contextlib.asynccontextmanager
async def signing_in(state_dir) -> AsyncIterator[tuple[Issuer, Stack, Visitor]]:
    issuer = Issuer()
    async with serving(issuer) as served:
        issuer.url = served.url
        settings = {
            "oidc_issuer": served.url,
            "oidc_client_id": "gw",
            "oidc_client_secret": "s3cret/+",
            "oidc_admins": "ops",
            "oidc_viewers": "staff",
        }
        jar = aiohttp.CookieJar(unsafe=True)
        async with running_stack(state_dir, **settings) as stack, aiohttp.ClientSession(cookie_jar=jar) as session:
            yield issuer, stack, Visitor(session, stack.running.url)


async def there_and_back(visitor: Visitor, path: str = "/ui/login/oidc?next=/ui/keys") -> Any:
    to_issuer = await visitor.get(path)
    assert to_issuer.status == 303, to_issuer.body
    async with visitor.session.get(to_issuer.headers["location"], allow_redirects=False) as answer:
        back = answer.headers["location"]
    return await visitor.get(back.removeprefix(visitor.url))


async def test_a_person_signs_in_with_the_role_of_its_group(state_dir) -> None:
    async with signing_in(state_dir) as (issuer, _, visitor):
        assert b"/ui/login/oidc" in (await visitor.get("/ui/login")).body
        page = await there_and_back(visitor)
        assert page.status == 200
        assert 'content="0;url=/ui/keys"' in page.body.decode()
        account = (await visitor.get("/ui/account")).body.decode()
        assert "oidc:ada#u-1" in account
        assert "Administrator" in account
        assert issuer.asked["scope"] == "openid profile"
        assert issuer.asked["code_challenge_method"] == "S256"
        pair = base64.b64decode(issuer.authorizations[0].removeprefix("Basic ")).decode()
        assert pair == "gw:s3cret%2F%2B"
        issuer.claims["groups"] = ["staff"]
        await there_and_back(visitor)
        assert "Viewer" in (await visitor.get("/ui/account")).body.decode()
        assert (await visitor.get("/ui/keys/new")).status == 403


@pytest.mark.parametrize(
    "lie",
    [
        {"key": STRANGER},
        {"algorithm": "HS256", "key": "gw" * 32},
        {"kid": "unknown"},
        {"claims": {"aud": "another"}},
        {"claims": {"aud": ["gw", "another"], "azp": "another"}},
        {"claims": {"iss": "https://evil.example"}},
        {"claims": {"exp": 1_000_000}},
        {"claims": {"nonce": "of another sign-in"}},
        {"claims": {"sub": None}},
        {"claims": {"sub": "u-\n1"}},
        {"claims": {"sub": "u" * 256}},
        {"claims": {"groups": ["guests"]}},
        {"claims": {"groups": None}},
    ],
)
async def test_a_token_that_is_not_good_for_us_opens_nothing(state_dir, lie: dict[str, Any]) -> None:
    async with signing_in(state_dir) as (issuer, _, visitor):
        issuer.key, issuer.algorithm = lie.get("key", issuer.key), lie.get("algorithm", issuer.algorithm)
        issuer.kid = lie.get("kid", issuer.kid)
        issuer.claims |= lie.get("claims", {})
        if issuer.claims["sub"] is None:
            del issuer.claims["sub"]
        assert (await there_and_back(visitor)).status == 403
        assert (await visitor.get("/ui/account")).status == 303


async def test_only_the_browser_that_began_may_finish_and_only_once(state_dir) -> None:
    async with signing_in(state_dir) as (issuer, _, visitor):
        location = (await visitor.get("/ui/login/oidc")).headers["location"]
        async with visitor.session.get(location, allow_redirects=False) as answer:
            back = urlsplit(answer.headers["location"])
        callback = f"{back.path}?{back.query}"
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            assert (await Visitor(session, visitor.url).get(callback)).status == 400
        assert (await visitor.get(f"{back.path}?code=code-1&state=guess")).status == 400
        assert (await visitor.get(f"{back.path}?error=access_denied&state={issuer.asked['state']}")).status == 403
        assert (await visitor.get(f"{callback}&iss=https://evil.example")).status == 403
        assert (await visitor.get(callback)).status == 200
        assert (await visitor.get(callback)).status == 400


async def test_who_takes_the_name_of_another_is_told_apart_by_the_subject(state_dir) -> None:
    async with signing_in(state_dir) as (issuer, _, visitor):
        await there_and_back(visitor)
        issuer.claims["sub"] = "u-2"
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            other = Visitor(session, visitor.url)
            await there_and_back(other)
            account = (await other.get("/ui/account")).body.decode()
        assert "oidc:ada#u-2" in account
        assert account.count('name="handle"') <= 1  # its own session alone
    with pytest.raises(AccountError, match="oidc:"):
        checked_name("oidc:ada#u-1")


async def test_a_person_of_the_issuer_is_signed_out_by_command(state_dir, command: Command) -> None:
    name, where = "oidc:ada#u-1", ("--state", state_dir)
    async with signing_in(state_dir) as (_, _, visitor):
        await there_and_back(visitor)
        assert (await visitor.get("/ui/keys")).status == 200
        seen = await asyncio.to_thread(command.json, "admin", "sessions", *where)
        assert [(one["account"], one["role"]) for one in seen] == [(name, "admin")]
        assert name in (await asyncio.to_thread(command, "admin", "sessions", *where))[1]
        assert "1 sessions" in (await asyncio.to_thread(command, "admin", "sign-out", name, *where))[1]
        assert (await visitor.get("/ui/keys")).status == 303
        again = await asyncio.to_thread(command.json, "admin", "sign-out", name, *where)
        assert again == {"name": name, "ended": 0}
        assert "account.sign_out" in (await asyncio.to_thread(command, "audit", "list", *where))[1]


async def test_a_cookie_that_was_touched_is_none(state_dir) -> None:
    async with signing_in(state_dir) as (_, _, visitor):
        await visitor.get("/ui/login/oidc")
        cookie = next(one.value for one in visitor.session.cookie_jar if one.key == "dsg_oidc")
        for touched in (cookie[:-1] + ("0" if cookie[-1] != "0" else "1"), "x", "x.y", ""):
            reply = await visitor.get("/ui/login/callback?code=c&state=s", {"cookie": f"dsg_oidc={touched}"})
            assert reply.status == 400


async def test_an_issuer_that_is_away_is_a_page_that_says_so(state_dir) -> None:
    async with signing_in(state_dir) as (issuer, _, visitor):
        issuer.url = "https://elsewhere.example"  # what its discovery document says
        assert (await visitor.get("/ui/login/oidc")).status == 502


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"oidc_issuer": "https://id.example"}, "oidc_client_id"),
        ({"oidc_issuer": "https://id.example", "oidc_client_id": "gw"}, "oidc_admins"),
        ({"oidc_issuer": "http://id.example", "oidc_client_id": "gw", "oidc_admins": "x"}, "https"),
    ],
)
def test_half_a_configuration_is_refused(state_dir, settings: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        oidc_config(load_settings(state_dir=state_dir, **settings))


def test_roles_lie_in_nested_claims_too(state_dir) -> None:
    named = {"oidc_issuer": "https://id.example", "oidc_client_id": "gw", "oidc_admins": "a b,root"}
    config = oidc_config(load_settings(state_dir=state_dir, **named, oidc_role_claim="realm_access.roles"))
    assert config is not None
    assert config.role_of({"realm_access": {"roles": ["a b"]}}) == "admin"
    assert config.role_of({"realm_access": {"roles": "root"}}) == "admin"
    for claims in ({}, {"realm_access": []}, {"realm_access": {"roles": [["root"]]}}, {"realm_access": {"roles": {}}}):
        assert config.role_of(claims) is None


def test_an_attempt_shows_its_verifier_to_nobody() -> None:
    attempt = Attempt.begin()
    assert attempt.verifier not in attempt.challenge
    assert 43 <= len(attempt.verifier) <= 128
