"""Word lists in the pages: import, versions, policies, a text to try."""

import asyncio
import io
import re

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.storage.words import PolicyRow
from deepseek_gateway.testing.caller import Reply
from deepseek_gateway.testing.stack import Stack
from deepseek_gateway.testing.visitor import Visitor, form_token
from deepseek_gateway.web import app
from deepseek_gateway.web.multipart import read_multipart
from deepseek_gateway.web.views.words import marked

CSV = "pattern,level,category\nsesame,block,doors\ndagnabbit,mask,mild\n"


async def upload(visitor: Visitor, content: bytes, file_name: str = "words.csv", **form: str) -> Reply:
    """Send the form of an import as a browser does."""
    data = aiohttp.FormData()
    data.add_field("form_token", form_token((await visitor.get("/ui/words")).body))
    for name, value in form.items():
        data.add_field(name, value)
    data.add_field("file", content, filename=file_name, content_type="text/csv")
    async with visitor.session.post(f"{visitor.url}/ui/words", data=data, allow_redirects=False) as answer:
        return Reply(answer.status, answer.headers, await answer.read())


def faults(reply: Reply) -> list[str]:
    return re.findall(r'class="fault" id="(\w+)-fault"', reply.body.decode())


async def test_a_list_is_imported_tried_put_in_force_and_switched_off(stack: Stack, visitor: Visitor) -> None:
    reply = await upload(visitor, CSV.encode("utf-8-sig"), name="house", note="first <one>")
    path = "/ui/words/lists/house"
    assert reply.headers["location"] == f"{path}?done=imported"
    assert (await stack.caller.post(body={"prompt": "open sesame"})).status == 200
    tried = await visitor.submit("/ui/words/test", text="open  sesame, dagnabbit!", list="house", direction="in")
    assert '<mark class="block" title="block">sesame</mark>' in tried.body.decode()
    assert b"Blocked" in tried.body
    assert b"Nothing was found" in (await visitor.submit("/ui/words/test", text="open  sesame")).body
    assert (await visitor.submit(f"{path}/activate", page=path, version="1")).status == 303
    async with asyncio.timeout(30):
        while (await stack.caller.post(body={"prompt": "open sesame"})).status != 400:
            pass
    page = (await visitor.get(path)).body.decode()
    for told in ("in force: 1", "first &lt;one&gt;", "dagnabbit", "doors", "session:admin"):
        assert told in page, told
    exported = await visitor.get(f"{path}/export?version=1")
    assert exported.headers["content-disposition"] == 'attachment; filename="house-1.csv"'
    assert "sesame,block,doors" in exported.body.decode()
    second = await upload(visitor, b"other\nanother\n", "new.txt", name="house", level="review", activate="yes")
    assert second.headers["location"] == f"{path}?done=activated"
    assert (await visitor.submit(f"{path}/activate", page=path, version="9")).status == 404
    assert (await visitor.submit(f"{path}/activate", page=path)).status == 303
    assert "house" in (await visitor.get("/ui/words")).body.decode()
    (row,) = await asyncio.to_thread(stack.gateway.store.words.lists)
    assert row.active_version is None


async def test_a_list_counts_for_whom_a_policy_says(stack: Stack, visitor: Visitor) -> None:
    org_id = await asyncio.to_thread(stack.running.org, "Acme")
    assert (await visitor.submit("/ui/words", action="demonstration")).status == 303
    path = "/ui/words/lists/demonstration"
    form = {"scope": "org", "scope_id": "Acme", "level": "off", "on_failure": "open"}
    assert (await visitor.submit(f"{path}/policy", page=path, **form)).status == 303
    kept = await asyncio.to_thread(stack.gateway.store.words.policies)
    assert kept == [PolicyRow("org", org_id, "demonstration", "off", "open")]
    assert "Acme" in (await visitor.get("/ui/words")).body.decode()
    wrong = {**form, "scope_id": "nobody"}
    assert faults(await visitor.submit(f"{path}/policy", page=path, **wrong)) == ["scope_id"]
    wrong = {**form, "scope": "key", "scope_id": ""}
    assert faults(await visitor.submit(f"{path}/policy", page=path, **wrong)) == ["scope_id"]
    assert faults(await visitor.submit(f"{path}/policy", page=path, **{**form, "level": "x"})) == ["level"]
    drop = {"scope": "org", "scope_id": org_id}
    assert (await visitor.submit(f"{path}/policy/drop", page=path, **drop)).status == 303
    assert (await visitor.submit(f"{path}/policy/drop", page=path, **drop)).status == 404
    assert (await visitor.get("/ui/words/lists/nothing")).status == 404


@pytest.mark.parametrize(
    ("content", "form", "faulty"),
    [
        (b"", {}, "file"),
        ("词".encode("gb18030"), {}, "file"),
        (b"pattern,level\nx,destroy\n", {}, "file"),
        (CSV.encode(), {"name": ""}, "name"),
        (CSV.encode(), {"name": "a b"}, "name"),
        (CSV.encode(), {"level": "destroy"}, "level"),
        (CSV.encode(), {"note": "x" * 501}, "note"),
    ],
)
async def test_an_imports_fault_stands_beside_its_field(
    visitor: Visitor, content: bytes, form: dict[str, str], faulty: str
) -> None:
    reply = await upload(visitor, content, **{"name": "house", **form})
    assert (reply.status, faults(reply)) == (422, [faulty])
    assert (b"line 2" in reply.body) == (b"destroy" in content)


async def test_a_file_that_is_too_large_is_refused(visitor: Visitor) -> None:
    assert app.MAX_LIST_BYTES == 16 * 2**20
    large, headers = io.BytesIO(b"x" * 2**20 + b"x"), {"content-type": "application/x-www-form-urlencoded"}
    async with visitor.session.post(f"{visitor.url}/ui/words/test", data=large, headers=headers) as answer:
        assert (answer.status, "1 MiB at most" in await answer.text()) == (413, True)
    assert faults(await visitor.submit("/ui/words/test", text="x" * 100_001)) == ["text"]
    assert faults(await visitor.submit("/ui/words/test", text="x", list="nothing")) == ["list"]
    assert faults(await visitor.submit("/ui/words/test", text="x", key="nothing")) == ["key"]


async def test_an_upload_without_the_forms_token_changes_nothing(stack: Stack, visitor: Visitor) -> None:
    data = aiohttp.FormData()
    data.add_field("name", "house")
    data.add_field("file", CSV, filename="words.csv")
    async with visitor.session.post(f"{visitor.url}/ui/words", data=data) as answer:
        assert answer.status == 403
    assert await asyncio.to_thread(stack.gateway.store.words.lists) == []


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=200), max_size=5))
def test_files_of_a_form_come_out_as_they_went_in(files: dict[str, bytes]) -> None:
    files = {name: content for name, content in files.items() if b"\r\n--bound" not in b"\r\n" + content}
    parts = [
        f'--bound\r\nContent-Disposition: form-data; name="{name}"; filename="词 {name}.csv"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files.items()
    ]
    form = read_multipart("multipart/form-data; boundary=bound", b"".join(parts) + b"--bound--\r\n")
    assert {name: upload.content for name, upload in form.files.items()} == files
    assert [upload.name for upload in form.files.values()] == [f"词 {name}.csv" for name in files]


@given(st.binary(max_size=300))
def test_no_form_at_all_is_a_fault_and_no_crash(body: bytes) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=b", "multipart/form-data; boundary"):
        with pytest.raises(ValueError, match=r"boundary|cut off|head|name|decode"):
            read_multipart(kind, b"--b\r\n" + body)


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=6))
def test_a_marked_text_is_the_whole_text(text: str, places: list[tuple[int, int]]) -> None:
    hits = [
        {"start": start, "end": min(len(text), start + length), "level": "mask"}
        for start, length in places
        if start < len(text)
    ]
    assert "".join(piece for piece, _ in marked(text, hits)) == text
