"""Who gets into the pages, and who does not."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from deepseek_gateway.testing.stack import Stack, running_stack
from deepseek_gateway.testing.visitor import PASSWORD, Visitor, form_token
from deepseek_gateway.web.accounts import MAX_PER_ADDRESS, Accounts
from deepseek_gateway.web.records import Role

pytestmark = pytest.mark.usefixtures("cheap_passwords")


def with_accounts(stack: Stack) -> Accounts:
    accounts = Accounts(stack.gateway.store)
    accounts.create("admin", PASSWORD)
    accounts.create("eve", PASSWORD, Role.VIEWER)
    return accounts


def visitor_of(stack: Stack) -> Visitor:
    return Visitor(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)), stack.running.url)


@pytest.fixture
async def visitor(stack: Stack) -> AsyncIterator[Visitor]:
    await asyncio.to_thread(with_accounts, stack)
    visitor = visitor_of(stack)
    yield visitor
    await visitor.session.close()


def cookies_of(visitor: Visitor) -> dict[str, str]:
    return {cookie.key: cookie.value for cookie in visitor.session.cookie_jar}


async def test_a_visitor_is_sent_to_the_sign_in_and_back(visitor: Visitor) -> None:
    assert (await visitor.get("/")).headers["location"] == "/ui/"
    sent = await visitor.get("/ui/usage?by=model")
    assert (sent.status, sent.headers["location"]) == (303, "/ui/login?next=%2Fui%2Fusage%3Fby%3Dmodel")
    form = await visitor.get(sent.headers["location"])
    assert form.status == 200
    token = form_token(form.body)
    back = await visitor.post("/ui/login", form_token=token, name="admin", password=PASSWORD, next="/ui/usage?by=model")
    assert (back.status, back.headers["location"]) == (303, "/ui/usage?by=model")
    assert (await visitor.get("/ui/usage?by=model")).status == 200


@pytest.mark.parametrize(
    "path", ["https://evil.example/", "//evil.example", "/ui/\\evil", "/v1/models", "javascript:1"]
)
async def test_the_way_back_never_leads_elsewhere(visitor: Visitor, path: str) -> None:
    token = form_token((await visitor.get("/ui/login")).body)
    reply = await visitor.post("/ui/login", form_token=token, name="admin", password=PASSWORD, next=path)
    assert reply.headers["location"] == "/ui/"


async def test_the_session_cookie_is_for_the_pages_alone(stack: Stack, visitor: Visitor) -> None:
    reply = await visitor.sign_in()
    cookie = next(value for value in reply.headers.getall("set-cookie") if value.startswith("dsg_session="))
    assert {"HttpOnly", "Path=/ui", "SameSite=strict"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    secret = cookies_of(visitor)["dsg_session"]
    kept = await asyncio.to_thread(stack.gateway.store.database.read, "SELECT * FROM web_sessions")
    assert len(kept) == 1
    assert secret not in str(kept)


async def test_behind_https_the_cookie_is_secure(state_dir) -> None:
    async with running_stack(state_dir, public_url="https://gateway.example") as stack:
        await asyncio.to_thread(with_accounts, stack)
        visitor = visitor_of(stack)
        async with visitor.session:
            page = await visitor.get("/ui/login")
            assert "Secure" in page.headers["set-cookie"]


@pytest.mark.parametrize(
    ("name", "password"), [("admin", "wrong"), ("nobody", PASSWORD), ("", ""), ("admin", "x" * 9000)]
)
async def test_a_wrong_guess_is_a_401_that_tells_nothing(visitor: Visitor, name: str, password: str) -> None:
    reply = await visitor.sign_in(name, password)
    assert reply.status == 401
    assert "The account or the password is wrong." in reply.body.decode()
    assert "dsg_session" not in cookies_of(visitor)


async def test_guessing_ends_after_a_few_attempts_even_with_the_right_password(stack: Stack, visitor: Visitor) -> None:
    replies = await asyncio.gather(*(visitor.sign_in("admin", f"guess {number}") for number in range(MAX_PER_ADDRESS)))
    assert {reply.status for reply in replies} == {401}
    assert (await visitor.sign_in()).status == 429
    accounts = Accounts(stack.gateway.store)
    # The way out for an owner: a new password, set on the machine. It frees the account, not the guesser's address.
    await asyncio.to_thread(accounts.set_password, "admin", PASSWORD)
    assert (await visitor.sign_in()).status == 429
    assert await asyncio.to_thread(accounts.verify, "admin", PASSWORD, "192.0.2.7") is not None


async def test_a_form_needs_its_token(visitor: Visitor) -> None:
    token = form_token((await visitor.get("/ui/login")).body)
    fields = {"name": "admin", "password": PASSWORD}
    assert (await visitor.post("/ui/login", **fields)).status == 403
    assert (await visitor.post("/ui/login", form_token="0" * 64, **fields)).status == 403
    elsewhere = {"sec-fetch-site": "cross-site"}
    assert (await visitor.post("/ui/login", elsewhere, form_token=token, **fields)).status == 403
    visitor.session.cookie_jar.clear()
    assert (await visitor.post("/ui/login", form_token=token, **fields)).status == 403
    assert (await visitor.sign_in()).status == 303
    # The token of a visitor is not the token of a session.
    assert (await visitor.post("/ui/logout", form_token=token)).status == 403


async def test_signing_out_ends_the_session_itself(visitor: Visitor) -> None:
    await visitor.sign_in()
    kept = cookies_of(visitor)["dsg_session"]
    assert (await visitor.submit("/ui/logout", page="/ui/account")).headers["location"] == "/ui/login"
    visitor.session.cookie_jar.update_cookies({"dsg_session": kept})
    assert (await visitor.get("/ui/account", {"cookie": f"dsg_session={kept}"})).status == 303


async def test_a_new_password_ends_all_other_sessions(stack: Stack, visitor: Visitor) -> None:
    other = visitor_of(stack)
    async with other.session:
        await other.sign_in()
        await visitor.sign_in()
        form = {"old": PASSWORD, "password": "another long password", "again": "another long password"}
        wrong = await visitor.submit("/ui/account/password", page="/ui/account", **{**form, "old": "guess"})
        assert wrong.status == 422
        short = await visitor.submit(
            "/ui/account/password", page="/ui/account", **{**form, "password": "x", "again": "x"}
        )
        assert (short.status, b"12 to 256" in short.body) == (422, True)
        assert (await visitor.submit("/ui/account/password", page="/ui/account", **form)).status == 303
        assert (await visitor.get("/ui/account")).status == 200
        assert (await other.get("/ui/account")).status == 303
        assert (await other.sign_in()).status == 401
        assert (await other.sign_in(password="another long password")).status == 303


async def test_one_session_can_end_another(stack: Stack, visitor: Visitor) -> None:
    other, stranger = visitor_of(stack), visitor_of(stack)
    async with other.session, stranger.session:
        await other.sign_in()
        await visitor.sign_in()
        await stranger.sign_in("eve")
        await visitor.submit("/ui/account/sessions/end", page="/ui/account")
        assert (await other.get("/ui/account")).status == 303
        assert (await visitor.get("/ui/account")).status == 200
        assert (await stranger.get("/ui/account")).status == 200


async def test_a_viewer_sees_everything_and_changes_nothing(stack: Stack, visitor: Visitor) -> None:
    await visitor.sign_in("eve")
    key_id = stack.caller.key_id
    for path in ("/ui/", "/ui/usage", "/ui/usage.csv", "/ui/keys", f"/ui/keys/{key_id}", "/ui/playground"):
        assert (await visitor.get(path)).status == 200, path
    assert (await visitor.get("/ui/keys/new")).status == 403
    token = form_token((await visitor.get("/ui/account")).body)
    for path in ("/ui/keys/new", f"/ui/keys/{key_id}/revoke", f"/ui/keys/{key_id}/rotate", "/ui/playground/chat"):
        assert (await visitor.post(path, form_token=token, name="x")).status == 403, path
    assert (await stack.caller.post()).status == 200


async def test_pages_tell_browsers_what_they_may_do(visitor: Visitor) -> None:
    headers = (await visitor.get("/ui/login")).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


async def test_a_path_without_a_page_is_a_page_that_says_so(visitor: Visitor) -> None:
    reply = await visitor.get("/ui/nothing/here", {"accept-language": "zh-CN,en;q=0.5"})
    assert reply.status == 404
    assert "没有这个页面" in reply.body.decode()


async def test_without_an_account_the_page_says_how_to_make_one(stack: Stack) -> None:
    visitor = visitor_of(stack)
    async with visitor.session:
        assert b"deepseek-gateway admin create" in (await visitor.get("/ui/login")).body


async def test_the_pages_can_be_left_out(state_dir) -> None:
    async with running_stack(state_dir, web=False) as stack:
        assert (await stack.caller.get("/ui/login")).status == 404
