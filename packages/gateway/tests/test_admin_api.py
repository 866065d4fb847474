"""The admin API: organisations, teams, users and keys over HTTP."""

import asyncio
import time

import pytest

from deepseek_gateway.testing.caller import Caller, Reply
from deepseek_gateway.testing.stack import Stack, running_gateway, running_stack

FAULTS = [
    ({}, "name", "required"),
    ({"name": ""}, "name", "at least 1 character"),
    ({"name": "a\x00b"}, "name", "invisible"),
    ({"name": " a"}, "name", "spaces at an end"),
    ({"name": "x" * 101}, "name", "100"),
    ({"name": 5}, "name", "string"),
    ({"name": "a", "nmae": 1}, "nmae", "no such field"),
    ({"name": "a", "scopes": ["god"]}, "scopes.0", "inference"),
    ({"name": "a", "scopes": []}, "scopes", "at least 1"),
    ({"name": "a", "models": ["*x"]}, "models.0", "beginning and one *"),
    ({"name": "a", "cidrs": ["10.0.0.1/8"]}, "cidrs.0", "write 10.0.0.0/8"),
    ({"name": "a", "cidrs": ["anywhere"]}, "cidrs.0", "is no network"),
    ({"name": "a", "limits": {"rpm": 5}}, "limits.rpm", "no such field"),
    ({"name": "a", "limits": {"tokens_per_month": 0}}, "limits.tokens_per_month", "greater than or equal to 1"),
    ({"name": "a", "limits": {"tokens_per_month": 2**63}}, "limits.tokens_per_month", "less than or equal"),
    ({"name": "a", "expires": 5}, "expires", "has passed"),
    ({"name": "a", "expires": 1e300}, "expires", "less than"),
    ({"name": "a", "org_id": "org-nobody"}, "org_id", "no such organisation"),
    ({"name": "a", "user_id": "user-nobody"}, "user_id", "no such user"),
    ({"name": "a", "count": 0}, "count", "greater than or equal to 1"),
    ({"name": "a", "count": 10**9}, "count", "less than or equal to 10000"),
    ({"name": "x" * 100, "count": 2}, "name", "no room for a number"),
]


@pytest.fixture
async def stack(state_dir, store_url):
    """The admin API works on both kinds of store; changes are in force at once."""
    async with running_stack(state_dir, store_url=store_url, key_cache_ttl_s=0) as running:
        yield running


@pytest.fixture
def admin(stack: Stack) -> Caller:
    return stack.with_key(scopes=["admin"])


async def send(caller: Caller, method: str, path: str, body=None) -> Reply:
    async with caller.open(path, body, method=method) as answer:
        return Reply(answer.status, answer.headers, await answer.read())


async def made(caller: Caller, path: str, **body) -> dict:
    reply = await send(caller, "POST", path, body)
    assert reply.status == 201, reply.body
    return reply.json


async def test_people_are_created_listed_changed_and_deleted(admin: Caller) -> None:
    org = await made(admin, "/admin/orgs", name="acme")
    team = await made(admin, "/admin/teams", name="research", org_id=org["id"])
    user = await made(admin, "/admin/users", name="ada", team_id=team["id"])
    assert (user["org_id"], user["team_id"]) == (org["id"], team["id"])
    assert (await admin.get(f"/admin/users/{user['id']}")).json == user
    assert (await admin.get(f"/admin/teams?org_id={org['id']}")).json == {"data": [team], "next_cursor": None}
    renamed = await send(admin, "PATCH", f"/admin/orgs/{org['id']}", {"name": "acme 2"})
    assert renamed.json == {**org, "name": "acme 2"}
    moved = await send(admin, "PATCH", f"/admin/users/{user['id']}", {"team_id": None})
    assert (moved.json["team_id"], moved.json["name"]) == (None, "ada")
    in_use = await send(admin, "DELETE", f"/admin/orgs/{org['id']}")
    assert (in_use.status, in_use.error["code"]) == (409, "in_use")
    for path in (f"/admin/users/{user['id']}", f"/admin/teams/{team['id']}", f"/admin/orgs/{org['id']}"):
        assert (await send(admin, "DELETE", path)).status == 200
        assert (await admin.get(path)).status == 404


async def test_a_name_is_taken_within_its_organisation_only(admin: Caller) -> None:
    first, second = [await made(admin, "/admin/orgs", name=name) for name in ("one", "two")]
    await made(admin, "/admin/teams", name="a", org_id=first["id"])
    await made(admin, "/admin/teams", name="a", org_id=second["id"])
    for path, body in (("/admin/orgs", {"name": "one"}), ("/admin/teams", {"name": "a", "org_id": first["id"]})):
        reply = await send(admin, "POST", path, body)
        assert (reply.status, reply.error["param"], reply.error["code"]) == (409, "name", "name_taken")
    reply = await send(admin, "PATCH", f"/admin/orgs/{second['id']}", {"name": "one"})
    assert (reply.status, reply.error["code"]) == (409, "name_taken")


async def test_a_key_is_issued_inspected_and_changed(admin: Caller, stack: Stack) -> None:
    org = await made(admin, "/admin/orgs", name="acme")
    user = await made(admin, "/admin/users", name="ada", org_id=org["id"])
    wanted = {
        "name": "app",
        "user_id": user["id"],
        "models": ["fake-*"],
        "cidrs": ["127.0.0.0/8", "::ffff:10.0.0.0/104"],
        "tags": ["prod", "prod", "eu"],
        "limits": {"requests_per_minute": 100},
        "expires": round(time.time()) + 3600,
    }
    issued = await made(admin, "/admin/keys", **wanted)
    text = issued.pop("key")
    assert (issued["org_id"], issued["scopes"], issued["state"]) == (org["id"], ["inference"], "active")
    assert (issued["cidrs"], issued["tags"]) == (["127.0.0.0/8", "10.0.0.0/8"], ["prod", "eu"])
    assert issued["created_by"] == f"key:{admin.key_id}"
    assert (await admin.get(f"/admin/keys/{issued['id']}")).json == issued
    assert (await stack.caller.with_key(text).post()).status == 200
    changes = {"models": [], "tags": ["eu"], "name": "app 2", "expires": None}
    changed = (await send(admin, "PATCH", f"/admin/keys/{issued['id']}", changes)).json
    assert changed == {**issued, **changes, "last_used": changed["last_used"]}
    refused = await stack.caller.with_key(text).post()
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
    listed = [(await admin.get(f"/admin/keys?tag={tag}")).json["data"] for tag in ("prod", "eu")]
    assert [[key["id"] for key in keys] for keys in listed] == [[], [issued["id"]]]


async def test_a_key_is_rotated_disabled_enabled_and_revoked(admin: Caller, stack: Stack) -> None:
    first = await made(admin, "/admin/keys", name="app")
    path = f"/admin/keys/{first['id']}"

    async def statuses(*texts: str) -> list[int]:
        return [(await stack.caller.with_key(text).post()).status for text in texts]

    second = (await send(admin, "POST", f"{path}/rotate", {"grace_s": 60})).json["key"]
    assert await statuses(first["key"], second) == [200, 200]
    third = (await send(admin, "POST", f"{path}/rotate", {"grace_s": 0})).json["key"]
    assert await statuses(first["key"], second, third) == [401, 401, 200]
    assert (await send(admin, "POST", f"{path}/disable")).json["state"] == "disabled"
    refused = await stack.caller.with_key(third).post()
    assert (refused.status, "disabled" in refused.error["message"]) == (401, True)
    assert (await send(admin, "POST", f"{path}/enable")).json["state"] == "active"
    assert await statuses(third) == [200]
    assert [(await send(admin, "POST", f"{path}/revoke")).json["state"] for _ in range(2)] == ["revoked", "revoked"]
    assert await statuses(third) == [401]
    for act in ("rotate", "disable", "enable"):
        reply = await send(admin, "POST", f"{path}/{act}")
        assert (reply.status, reply.error["code"]) == (409, "revoked")
    await stack.running.rows(4)
    assert (await send(admin, "DELETE", path)).status == 409, "a used key stays"


async def test_a_key_that_was_never_used_can_be_deleted(admin: Caller) -> None:
    key = await made(admin, "/admin/keys", name="mistake", tags=["a"])
    assert (await send(admin, "DELETE", f"/admin/keys/{key['id']}")).json["id"] == key["id"]
    assert (await admin.get(f"/admin/keys/{key['id']}")).status == 404


async def test_a_disabled_owner_stops_its_keys(admin: Caller, stack: Stack) -> None:
    org = await made(admin, "/admin/orgs", name="acme")
    team = await made(admin, "/admin/teams", name="t", org_id=org["id"])
    user = await made(admin, "/admin/users", name="u", team_id=team["id"])
    key = await made(admin, "/admin/keys", name="app", user_id=user["id"])
    assert (key["org_id"], key["team_id"]) == (org["id"], team["id"])
    caller = stack.caller.with_key(key["key"])
    assert (await caller.post()).status == 200
    for kind, noun, owner in (("org", "organisation", org), ("team", "team", team), ("user", "user", user)):
        assert (await send(admin, "POST", f"/admin/{kind}s/{owner['id']}/disable")).status == 200
        refused = await caller.post()
        assert (refused.status, f"the {noun} of the API key" in refused.error["message"]) == (401, True)
        shown = (await admin.get("/admin/keys?state=disabled")).json["data"]
        assert [(found["id"], found["owner_disabled"]) for found in shown] == [(key["id"], kind)]
        assert (await send(admin, "POST", f"/admin/{kind}s/{owner['id']}/enable")).status == 200
        assert (await caller.post()).status == 200


async def test_many_keys_are_made_at_once_and_read_in_pages(admin: Caller, stack: Stack) -> None:
    made_keys = (await made(admin, "/admin/keys", name="batch", count=25, tags=["b"]))["data"]
    assert [key["name"] for key in made_keys] == [f"batch-{number}" for number in range(1, 26)]
    assert len({key["key"] for key in made_keys}) == 25
    assert (await stack.caller.with_key(made_keys[13]["key"]).post()).status == 200
    for query in ("tag=b&", ""):
        found, cursor = [], ""
        while cursor is not None:
            page = (await admin.get(f"/admin/keys?{query}limit=10{cursor and f'&cursor={cursor}'}")).json
            found += [key["id"] for key in page["data"]]
            cursor = page["next_cursor"]
        assert len(found) == len(set(found))
        assert set(found) >= {key["id"] for key in made_keys}
    assert len(found) == 27


async def test_an_organisations_admin_sees_and_changes_only_its_own(admin: Caller, stack: Stack) -> None:
    ours, theirs = [await made(admin, "/admin/orgs", name=name) for name in ("ours", "theirs")]
    their_team = await made(admin, "/admin/teams", name="t", org_id=theirs["id"])
    their_key = await made(admin, "/admin/keys", name="k", org_id=theirs["id"])
    bound = stack.with_key(scopes=["admin"], org_id=ours["id"])
    assert [org["id"] for org in (await bound.get("/admin/orgs")).json["data"]] == [ours["id"]]
    assert (await bound.get("/admin/teams")).json["data"] == []
    assert [key["id"] for key in (await bound.get("/admin/keys")).json["data"]] == [bound.key_id]
    for path in (f"/admin/orgs/{theirs['id']}", f"/admin/teams/{their_team['id']}", f"/admin/keys/{their_key['id']}"):
        assert (await bound.get(path)).status == 404
    assert (await send(bound, "POST", f"/admin/keys/{their_key['id']}/revoke")).status == 404
    assert (await send(bound, "POST", f"/admin/keys/{stack.caller.key_id}/revoke")).status == 404
    for path in ("/admin/keys", "/admin/teams", "/admin/usage"):
        refused = await bound.get(f"{path}?org_id={theirs['id']}")
        assert (refused.status, refused.error["param"]) == (422, "org_id")
    for body in ({"org_id": theirs["id"]}, {"team_id": their_team["id"]}):
        refused = await send(bound, "POST", "/admin/keys", {"name": "k", **body})
        assert (refused.status, refused.error["param"]) == (422, next(iter(body)))
    own = await made(bound, "/admin/keys", name="k", scopes=["admin-read"])
    assert own["org_id"] == ours["id"]
    for method, path in (("POST", "/admin/orgs"), ("PATCH", f"/admin/orgs/{ours['id']}")):
        refused = await send(bound, method, path, {"name": "x"})
        assert (refused.status, refused.error["code"]) == (403, "wrong_organisation")


async def test_usage_is_shown_to_who_may_see_its_key(admin: Caller, stack: Stack) -> None:
    org = await made(admin, "/admin/orgs", name="acme")
    theirs = stack.with_key(org_id=org["id"])
    for caller in (theirs, stack.caller):
        await caller.post()
    await stack.running.rows(2)
    bound = stack.with_key(scopes=["admin-read"], org_id=org["id"])
    assert [total["key_id"] for total in (await bound.get("/admin/usage")).json["data"]] == [theirs.key_id]
    assert len((await admin.get("/admin/usage?since=2020-01-01")).json["data"]) == 2
    assert (await admin.get("/admin/usage?until=2020-01-01")).json["data"] == []
    one = (await admin.get(f"/admin/usage?key_id={stack.caller.key_id}")).json["data"]
    assert [(total["key_id"], total["requests"], total["total_tokens"]) for total in one] == [
        (stack.caller.key_id, 1, 11)
    ]


async def test_usage_is_answered_by_any_dimension_in_pages_and_as_csv(admin: Caller, stack: Stack) -> None:
    callers = [stack.with_key(tags=["red"]), stack.with_key()]
    for caller in (*callers, callers[0]):
        await caller.post()
    await stack.running.rows(3)
    total = (await admin.get("/admin/usage?group_by=served_model,route,upstream,status,reason")).json["data"][0]
    assert (total["served_model"], total["route"], total["requests"]) == ("fake-model", "/v1/generate", 3)
    assert "key_id" not in total
    first = (await admin.get("/admin/usage?group_by=key&order=requests&limit=1")).json
    rest = (await admin.get(f"/admin/usage?group_by=key&order=requests&limit=1&cursor={first['next_cursor']}")).json
    assert [line["key_id"] for page in (first, rest) for line in page["data"]] == [each.key_id for each in callers]
    assert rest["next_cursor"] is None
    assert (await admin.get("/admin/usage?group_by=day&tag=red&tz=Asia/Shanghai")).json["data"][0]["requests"] == 2
    reply = await admin.get("/admin/usage?group_by=key&format=csv&limit=1&order=tokens")
    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    assert reply.headers["x-next-cursor"] == "1"
    assert reply.body.decode().splitlines()[1].startswith(callers[0].key_id)
    for query, param in (("group_by=day,size", "group_by"), ("tz=Mars", "tz"), ("limit=0", "limit"), ("key=x", "key")):
        refused = await admin.get(f"/admin/usage?{query}")
        assert (refused.status, refused.error["param"]) == (422, param)


async def test_a_wrong_field_of_a_key_is_a_422_that_names_it(admin: Caller) -> None:
    for body, param, says in FAULTS:
        reply = await send(admin, "POST", "/admin/keys", body)
        assert (reply.status, reply.error["param"]) == (422, param), body
        assert says in reply.error["message"], body


async def test_malformed_bodies_and_parameters_are_explained(admin: Caller) -> None:
    assert (await send(admin, "POST", "/admin/keys", b"{")).error["code"] == "invalid_json"
    assert (await send(admin, "POST", "/admin/keys", b"[1]")).status == 422
    assert (await send(admin, "POST", "/admin/keys", b'{"name": "\\ud800"}')).status in (400, 422)
    assert (await send(admin, "POST", "/admin/keys", b'{"a":' * 10000)).status == 400
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("cursor=!", "cursor"), ("no=1", "no")):
        reply = await admin.get(f"/admin/keys?{query}")
        assert (reply.status, reply.error["param"]) == (422, param), query
    assert (await admin.get("/admin/keys?limit=1&limit=2")).status == 422
    assert (await admin.get("/admin/keys?" + "&".join(f"x{number}=" for number in range(200)))).status == 422
    for path in ("/admin/keys/%00", "/admin/keys/nobody", "/admin/orgs/%F0%9F%98%80", "/admin/users/x%27--"):
        assert (await admin.get(path)).status == 404


async def test_an_answer_that_may_hold_a_key_is_not_kept_by_caches(admin: Caller) -> None:
    reply = await send(admin, "POST", "/admin/keys", {"name": "a"})
    assert reply.headers["cache-control"] == "no-store"


async def test_what_one_gateway_does_is_in_force_on_another_within_its_cache_time(state_dir, postgres) -> None:
    shared = {"store_url": postgres.new_database(), "key_pepper": "shared by all gateways", "key_cache_ttl_s": 0.2}
    shared["allow_local_limits"] = True
    async with (
        running_stack(state_dir / "one", **shared) as one,
        running_gateway(state_dir / "two", one.served.url, **shared) as two,
    ):
        admin = one.with_key(scopes=["admin"])
        key = await made(admin, "/admin/keys", name="app")
        elsewhere = Caller(one.caller.session, two.url, key["key"])
        assert (await elsewhere.post()).status == 200
        for act, status in (("disable", 401), ("enable", 200), ("revoke", 401)):
            await send(admin, "POST", f"/admin/keys/{key['id']}/{act}")
            async with asyncio.timeout(30):
                while (await elsewhere.post()).status != status:
                    pass


async def test_an_act_can_be_followed_from_its_request(admin: Caller, caplog) -> None:
    caplog.set_level("INFO")
    reply = await send(admin, "POST", "/admin/orgs", {"name": "acme"})
    request_id = reply.headers["x-request-id"]
    lines = [found.getMessage() for found in caplog.records if found.name == "deepseek_gateway.auth.acts"]
    assert f"act=org.create target={reply.json['id']}" in lines[-1]
    assert f"by=key:{admin.key_id} request_id={request_id}" in lines[-1]


async def test_a_race_for_a_name_has_one_winner(admin: Caller) -> None:
    replies = await asyncio.gather(*(send(admin, "POST", "/admin/orgs", {"name": "one"}) for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [201] + [409] * 7
