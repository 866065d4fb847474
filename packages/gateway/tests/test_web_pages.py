"""What the pages do, form by form."""

import asyncio
import csv
import io
import json
import re
import time
from html import unescape
from urllib.parse import quote

import pytest

from deepseek_gateway.storage.store import Store
from deepseek_gateway.storage.words import ReviewRow
from deepseek_gateway.testing.caller import Reply
from deepseek_gateway.testing.rows import ledger_row
from deepseek_gateway.testing.stack import Stack
from deepseek_gateway.testing.visitor import Visitor, form_token
from deepseek_gateway.web import formats
from deepseek_gateway.web.figures import Range, figures_of

pytestmark = pytest.mark.usefixtures("cheap_passwords")


def key_in(reply: Reply) -> str:
    match = re.search(r'id="secret"[^>]*>(dsk_\w+)<', reply.body.decode())
    assert match is not None, reply.body.decode()
    return match[1]


async def test_a_key_is_shown_once_and_works_as_it_was_made(stack: Stack, visitor: Visitor) -> None:
    form = {"name": "<b>app</b>", "scopes": "inference", "requests_per_minute": "2", "models": "fake-model, other-*"}
    reply = await visitor.submit("/ui/keys/new", **form)
    assert reply.status == 201
    assert "&lt;b&gt;app&lt;/b&gt;" in reply.body.decode()
    command = unescape(re.search(r'<code id="curl"[^>]*>(.*?)</code>', reply.body.decode(), re.DOTALL)[1])
    assert json.loads(re.search(r"-d '(.*)'", command)[1])["model"] == "fake-model"
    assert reply.headers["cache-control"] == "no-store"
    caller = stack.caller.with_key(key_in(reply))
    assert [(await caller.post()).status for _ in range(3)] == [200, 200, 429]
    page = (await visitor.get(f"/ui/keys/{caller.key_id}")).body.decode()
    assert caller.key not in page
    assert "fake-model, other-*" in page
    assert caller.key_id in (await visitor.get("/ui/keys")).body.decode()


@pytest.mark.parametrize(
    ("fields", "faulty"),
    [
        ({"name": ""}, "name"),
        ({"scopes": ""}, "scopes"),
        ({"tokens_per_minute": "many"}, "tokens_per_minute"),
        ({"tokens_per_month": "0"}, "tokens_per_month"),
        ({"expires": "2020-01-01"}, "expires"),
        ({"models": "a*b"}, "models"),
        ({"cidrs": "10.0.0.1/8"}, "cidrs"),
        ({"org": "nobody"}, "org"),
        ({"team": "nobody"}, "team"),
    ],
)
async def test_a_fault_stands_beside_its_field_and_nothing_is_lost(
    visitor: Visitor, fields: dict[str, str], faulty: str
) -> None:
    form = {"name": "kept name", "scopes": "inference", "tags": "kept", **fields}
    form = {name: value for name, value in form.items() if value}
    reply = await visitor.submit("/ui/keys/new", **form)
    text = reply.body.decode()
    assert reply.status == 422
    assert re.search(rf'id="{faulty}-fault">[A-Z]', text)
    assert len(re.findall(r'class="fault"', text)) == 1
    assert 'value="kept"' in text


async def test_a_key_is_found_by_a_part_of_its_name_by_its_id_and_by_its_text(stack: Stack, visitor: Visitor) -> None:
    org_id = await asyncio.to_thread(stack.running.org, "Acme")
    form = {"scopes": "inference", "org": "Acme"}
    made = {name: key_in(await visitor.submit("/ui/keys/new", name=name, **form)) for name in ("Search 100%", "cron_1")}
    ids = {name: key.split("_")[1] for name, key in made.items()}
    for wanted, found in (("search", {"Search 100%"}), ("0%", {"Search 100%"}), ("n_1", {"cron_1"}), ("_", {"cron_1"})):
        page = (await visitor.get("/ui/keys?state=active&find=" + quote(wanted))).body.decode()
        assert {name for name, key_id in ids.items() if key_id in page} == found, wanted
    for wanted in (ids["cron_1"], made["cron_1"], f" {ids['cron_1']} "):
        reply = await visitor.get("/ui/keys?find=" + quote(wanted))
        assert reply.headers["location"] == f"/ui/keys/{ids['cron_1']}"
    assert b"No key fits" in (await visitor.get("/ui/keys?find=nobody")).body
    page = (await visitor.get(f"/ui/keys?org={org_id}")).body.decode()
    assert (stack.caller.key_id in page, "<strong>Acme</strong>" in page) == (False, True)


async def test_the_first_page_of_a_list_is_of_the_same_filter(stack: Stack, visitor: Visitor) -> None:
    for _ in range(51):
        await asyncio.to_thread(stack.running.key, tags=("many",))
    page = (await visitor.get("/ui/keys?tag=many")).body.decode()
    following = unescape(re.search(r'href="(/ui/keys\?[^"]*after=[^"]*)"', page)[1])
    page = (await visitor.get(following)).body.decode()
    assert len(re.findall('<td class="title">', page)) == 1
    first = unescape(re.search(r'class="pager".*?href="([^"]*)"', page, re.DOTALL)[1])
    assert len(re.findall('<td class="title">', (await visitor.get(first)).body.decode())) == 50


async def test_a_key_rotates_rests_and_ends(stack: Stack, visitor: Visitor) -> None:
    path = f"/ui/keys/{stack.caller.key_id}"
    rotated = await visitor.submit(f"{path}/rotate", page=path, grace="24h")
    second = stack.caller.with_key(key_in(rotated))
    assert [(await caller.post()).status for caller in (stack.caller, second)] == [200, 200]
    assert (await visitor.submit(f"{path}/disable", page=path)).status == 303
    assert "disabled" in (await visitor.get(path)).body.decode()
    assert (await visitor.submit(f"{path}/enable", page=path)).status == 303
    assert (await visitor.submit(f"{path}/revoke", page=path)).headers["location"] == f"{path}?done=revoked"
    page = (await visitor.get(f"{path}?done=revoked")).body.decode()
    assert "The key is revoked" in page
    assert "/rotate" not in page
    assert (await visitor.get("/ui/keys/nothing")).status == 404


async def test_people_are_made_changed_and_removed(visitor: Visitor) -> None:
    made = await visitor.submit("/ui/people", name="Acme")
    path = made.headers["location"].partition("?")[0]
    org_id = path.rpartition("/")[2]
    assert (await visitor.submit("/ui/people", name="Acme")).status == 409
    assert (await visitor.submit("/ui/people", name="")).status == 422
    assert (await visitor.submit(f"{path}/teams", page=path, name="search")).status == 303
    team_id = re.search(r"team-\w{12}", (await visitor.get(path)).body.decode())[0]
    assert (await visitor.submit(f"{path}/users", page=path, name="ada", team=team_id)).status == 303
    user_id = re.search(r"user-\w{12}", (await visitor.get(path)).body.decode())[0]
    refused = await visitor.submit(f"{path}/teams/{team_id}", page=path, action="delete")
    assert (refused.status, b"still has keys, users or teams" in refused.body) == (409, True)
    await visitor.submit(f"{path}/users/{user_id}", page=path, action="save", name="Ada", team="")
    await visitor.submit(f"{path}/teams/{team_id}", page=path, action="delete")
    await visitor.submit(f"{path}/orgs/{org_id}", page=path, action="disable")
    page = (await visitor.get(path)).body.decode()
    assert team_id not in page
    assert 'value="Ada"' in page
    assert "disabled" in page
    form = {"name": "of acme", "scopes": "inference", "org": "Acme", "user": "Ada"}
    key_id = key_in(await visitor.submit("/ui/keys/new", **form)).split("_")[1]
    assert "is disabled, so this key does not work" in (await visitor.get(f"/ui/keys/{key_id}")).body.decode()


async def test_what_is_done_in_the_pages_is_in_the_audit_log(visitor: Visitor) -> None:
    await visitor.submit("/ui/people", name="Acme & Söhne")
    page = (await visitor.get("/ui/audit?action=org.*")).body.decode()
    assert "session:admin" in page
    assert "org.create" in page
    assert "Acme &amp; Söhne" in page
    assert b"No entry fits" in (await visitor.get("/ui/audit?actor=nobody")).body
    assert b"The log is sound" in (await visitor.submit("/ui/audit/verify", page="/ui/audit")).body


async def test_usage_adds_up_on_the_page_and_in_the_csv(stack: Stack, visitor: Visitor) -> None:
    caller = stack.with_key()
    await visitor.get("/ui/usage")
    for _ in range(3):
        await caller.post()
    await stack.running.rows(3)
    assert "no usage fits" in (await visitor.get("/ui/usage?since=2020-01-01&until=2020-01-02")).body.decode().lower()
    page = (await visitor.get("/ui/usage?by=key&then=model")).body.decode()
    assert caller.key_id in page
    assert "fake-model" in page
    reply = await visitor.get("/ui/usage.csv?by=key&then=status")
    assert reply.headers["content-disposition"].startswith('attachment; filename="usage-')
    (line,) = csv.DictReader(io.StringIO(reply.body.decode()))
    assert (line["key"], line["status"], line["requests"], line["failed"]) == (caller.key_id, "finished", "3", "0")
    assert int(line["total_tokens"]) == int(line["prompt_tokens"]) + int(line["completion_tokens"]) > 0


async def test_a_sum_is_of_all_requests_once_however_many_lines_there_are(
    stack: Stack, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tags in (("a", "b", "c"), ("a",), ()):
        await stack.with_key(tags=tags).post()
    await stack.running.rows(3)

    async def shown(by: str) -> tuple[int, int]:
        """Lines, and the requests of the sum."""
        page = (await visitor.get(f"/ui/usage?by={by}")).body.decode()
        body, foot = re.search("<tbody>(.*?)</tbody>.*?<tfoot>(.*?)</tfoot>", page, re.DOTALL).groups()
        return body.count("<tr>"), int(re.search(r'class="number">(\d+)<', foot)[1])

    assert [await shown("tag"), await shown("key")] == [(4, 3), (3, 3)]
    monkeypatch.setattr("deepseek_gateway.web.views.usage.SHOWN_LINES", 2)
    assert await shown("key") == (2, 3)
    assert b"the CSV has all" in (await visitor.get("/ui/usage?by=key")).body
    assert len((await visitor.get("/ui/usage.csv?by=key")).body.splitlines()) == 4
    monkeypatch.setattr("deepseek_gateway.web.views.usage.MAX_EXPORTED", 2)
    refused = await visitor.get("/ui/usage.csv?by=key")
    assert (refused.status, b"choose a shorter time" in refused.body) == (422, True)


async def test_the_playground_meters_to_the_key_that_was_chosen(stack: Stack, visitor: Visitor) -> None:
    key = stack.with_key(concurrent_requests=4)
    token = form_token((await visitor.get("/ui/playground")).body)
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "stream_options": {"include_usage": True}}
    headers = {"x-form-token": token, "x-playground-key": key.key_id, "content-type": "application/json"}
    url = f"{visitor.url}/ui/playground/chat"
    async with visitor.session.post(url, json=body, headers=headers) as answer:
        reply = Reply(answer.status, answer.headers, await answer.read())
    assert reply.status == 200
    assert reply.events[-1] == "data: [DONE]"
    assert reply.headers["x-content-type-options"] == "nosniff"
    row = await stack.row()
    assert (row.key_id, row.route, row.accuracy) == (key.key_id, "/v1/chat/completions", "exact")
    for wrong, status in (
        ({"x-form-token": "0"}, 403),
        ({"x-playground-key": "nobody"}, 401),
        ({"x-playground-key": ""}, 422),
    ):
        async with visitor.session.post(url, json=body, headers={**headers, **wrong}) as answer:
            assert answer.status == status
            assert "message" in (await answer.json())["error"]
    await asyncio.to_thread(stack.gateway.store.keys.revoke, key.key_id, 1.0)
    async with visitor.session.post(url, json=body, headers=headers) as answer:
        assert answer.status == 401


async def test_figures_of_the_overview_are_those_of_the_ledger(stack: Stack, visitor: Visitor) -> None:
    await stack.caller.post()
    await stack.caller.post(body={"prompt": "a", "fake": {"status": 500}})
    await stack.running.rows(2)
    reply = await visitor.get("/ui/overview?range=1h")
    figures = reply.json
    assert figures["totals"]["requests"] == 2
    assert figures["totals"]["failed"] == 1
    assert sum(figures["requests"]["finished"]) == 1
    assert len(figures["times"]) == len(figures["latency"]["p50"]) == 60
    assert [(one["id"], one["requests"]) for one in figures["top"]["keys"]] == [(stack.caller.key_id, 2)]
    assert [(one["name"], one["share"]) for one in figures["top"]["models"]] == [("fake-model", 1.0)]
    assert figures["totals"]["changes"] == {"requests": "", "tokens": "", "cost": ""}
    live = (await visitor.get("/ui/live")).json
    assert live["upstreams"][0]["state"] == "up"
    assert live["running"] == 0
    assert live["queued"] == {"high": 0, "normal": 0, "low": 0}
    assert live["upstreams"][0].keys() >= {"in_flight", "load", "waiting", "kv_use", "models"}


def test_totals_stand_beside_those_of_as_long_a_time_before(store: Store) -> None:
    last_slot = 1_800_000_000 // 60 * 60
    now, since = last_slot + 30.0, last_slot - 59 * 60.0  # the last slot is half over: 59.5 minutes are compared
    times = {"in": (since, now), "before": (since - 59.5 * 60,), "earlier": (since - 59.5 * 60 - 1,)}
    rows = [ledger_row(created=at, request_id=f"{name}-{at}") for name, all_at in times.items() for at in all_at]
    store.ledger.insert(rows)
    totals = figures_of(store, "USD", Range("1h", 60, 60), now)["totals"]
    assert (totals["requests"], totals["changes"]["requests"]) == (2, "+100 %")


@pytest.mark.parametrize(
    ("before", "now", "told"), [(0, 5, ""), (4, 4, "±0 %"), (4, 3, "-25 %"), (1, 9, "+800 %"), (1, 14, "×14")]
)
def test_a_change_is_told_in_few_signs(before: float, now: float, told: str) -> None:
    assert formats.change(before, now) == told


@pytest.mark.parametrize(
    ("nano", "told"),
    [
        (1_234_500_000_000, "$1,234.50"),
        (50_000_000, "$0.05"),
        (1_000, "$0.000001"),
        (4_260_000, "$0.0043"),
        (0, "$0.00"),
    ],
)
def test_money_has_the_digits_that_count(nano: int, told: str) -> None:
    assert formats.money(nano, "USD") == told


async def test_language_and_theme_are_kept_and_lead_back(visitor: Visitor) -> None:
    form = {"language": "zh", "theme": "dark", "next": "/ui/usage?by=key"}
    reply = await visitor.submit("/ui/preferences", page="/ui/account", **form)
    assert reply.headers["location"] == "/ui/usage?by=key"
    page = (await visitor.get("/ui/usage?by=key")).body.decode()
    assert '<html lang="zh" data-theme="dark">' in page
    assert "汇总维度" in page


async def test_static_files_are_kept_for_ever_under_their_version(visitor: Visitor) -> None:
    page = (await visitor.get("/ui/")).body.decode()
    urls = re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page)
    assert len(urls) >= 4
    for url in urls:
        reply = await visitor.get(url)
        assert reply.status == 200, url
        assert "immutable" in reply.headers["cache-control"]
    old = await visitor.get("/ui/static/0123456789abcdef/app.css")
    assert (old.status, old.headers["cache-control"]) == (200, "no-cache")
    assert (await visitor.get("/ui/static/0/../../app.py")).status == 404
    assert (await visitor.get("/ui/static/0/%2e%2e/app.py")).status == 404


async def test_a_store_that_cannot_be_read_is_a_page_that_says_so(stack: Stack, visitor: Visitor, monkeypatch) -> None:
    from deepseek_gateway.errors import StoreSlowError, StoreUnavailableError

    def broken(*_: object, **__: object) -> None:
        raise StoreUnavailableError("the disk is gone")

    def slow(*_: object, **__: object) -> None:
        raise StoreSlowError("too much")

    monkeypatch.setattr("deepseek_gateway.storage.usage.UsageTable.answer", broken)
    reply = await visitor.get("/ui/usage")
    assert (reply.status, b"cannot be reached" in reply.body, b"the disk" in reply.body) == (503, True, False)
    monkeypatch.setattr("deepseek_gateway.storage.statistics.StatisticsTable.slots", slow)
    reply = await visitor.get("/ui/overview")
    assert (reply.status, reply.json["error"]["code"]) == (503, "report_too_large")


async def test_a_keys_limits_and_rules_can_be_changed(stack: Stack, visitor: Visitor) -> None:
    path = f"/ui/keys/{stack.caller.key_id}"
    form = (await visitor.get(f"{path}/edit")).body.decode()
    assert 'value="test"' in form
    fields = {
        "name": "slower",
        "scopes": "inference",
        "requests_per_minute": "1",
        "expires": "2099-12-31",
        "tags": "x y",
    }
    wrong = await visitor.submit(f"{path}/edit", **{**fields, "requests_per_minute": "-1"})
    assert (wrong.status, b"requests_per_minute-fault" in wrong.body) == (422, True)
    assert (await visitor.submit(f"{path}/edit", **fields)).headers["location"] == f"{path}?done=saved"
    record = await asyncio.to_thread(stack.gateway.store.keys.find, stack.caller.key_id)
    assert record is not None
    assert (record.name, record.tags, record.limits.requests_per_minute) == ("slower", ("x", "y"), 1)
    form = (await visitor.get(f"{path}/edit")).body.decode()
    again = re.findall(r'name="(\w+)"(?: type="date")? value="([^"]*)"', form)
    kept = {name: value for name, value in again if name not in {"form_token", "next", "language", "theme", "scopes"}}
    await visitor.submit(f"{path}/edit", **kept, scopes="inference")
    assert await asyncio.to_thread(stack.gateway.store.keys.find, stack.caller.key_id) == record
    async with asyncio.timeout(30):
        while (await stack.caller.post()).status != 429:
            pass


async def test_the_life_of_a_request_is_a_page(stack: Stack, visitor: Visitor) -> None:
    reply = await stack.caller.post(headers={"x-request-id": "order-7"})
    refused = await stack.with_key(models=("other",)).post()
    await stack.running.rows(1)
    request_id = reply.headers["x-request-id"]
    page = (await visitor.get(f"/ui/requests/{request_id}")).body.decode()
    for told in ("order-7", stack.caller.key_id, stack.served.url, "/v1/generate", "exact"):
        assert told in page, told
    async with asyncio.timeout(30):
        while (await visitor.get(f"/ui/requests/{refused.headers['x-request-id']}")).status != 200:
            pass
    page = (await visitor.get(f"/ui/requests/{refused.headers['x-request-id']}")).body.decode()
    assert "may not use the model" in page
    assert request_id in (await visitor.get(f"/ui/requests?key={stack.caller.key_id}")).body.decode()
    assert (await visitor.get(f"/ui/requests?id={request_id}")).headers["location"] == f"/ui/requests/{request_id}"
    assert request_id in (await visitor.get("/ui/requests?id=order-7")).body.decode()
    for outcome, told in (("finished", True), ("refused", False), ("failed", False)):
        assert (request_id in (await visitor.get(f"/ui/requests?outcome={outcome}")).body.decode()) is told, outcome
    assert refused.headers["x-request-id"] in (await visitor.get("/ui/requests?outcome=refused")).body.decode()
    assert (await visitor.get("/ui/requests/req-nothing")).status == 404


async def test_a_hit_of_the_word_filter_is_reviewed(stack: Stack, visitor: Visitor) -> None:
    words = stack.gateway.store.words
    place = {
        "request_id": "req-1",
        "key_id": "key-1",
        "model": None,
        "direction": "out",
        "field": "content",
        "choice": 0,
    }
    about = {"category": "demo", "level": "review", "hit_start": 3, "hit_end": 9, "hit_hmac": "00"}
    rows = [ReviewRow(f"rev-{n}", time.time(), **place, rule="demo@1:1", **about) for n in "ab"]
    await asyncio.to_thread(words.add_reviews, rows)
    assert "rev-a" in (await visitor.get("/ui/review")).body.decode()
    assert "demo@1:1" in (await visitor.get("/ui/review/rev-a")).body.decode()
    assert (await visitor.submit("/ui/review/rev-a", action="confirm", note="right")).status == 303
    assert (await visitor.submit("/ui/review/rev-b", action="dismiss")).status == 303
    assert await asyncio.to_thread(words.count_reviews) == {"confirmed": 1, "dismissed": 1}
    await visitor.submit("/ui/preferences", page="/ui/account", language="zh")
    assert (
        '<span class="badge cancelled">审核</span>' in (await visitor.get("/ui/review?state=confirmed")).body.decode()
    )
    assert "rev-b" in (await visitor.get("/ui/review?state=dismissed")).body.decode()
    assert "review.confirmed" in (await visitor.get("/ui/audit")).body.decode()
    assert (await visitor.get("/ui/review/rev-none")).status == 404
