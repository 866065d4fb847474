"""Balance, files and the web: what is sent, what comes back."""

import io
from decimal import Decimal
from email import message_from_bytes

import pytest

from deepseek_client import NotFoundError

BALANCE = {
    "is_available": True,
    "balance_infos": [
        {"currency": "CNY", "total_balance": "110.10", "granted_balance": "10.00", "topped_up_balance": "100.10"}
    ],
}
FILE = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a.txt", "purpose": "user_data"}


@pytest.mark.parametrize("base", ["", "/v1", "/beta"])
async def test_a_balance_is_exact(server, connect, kit, base):
    server.script(kit.reply(BALANCE, x_ds_trace_id="trace-1"))
    balance = await kit.settle(connect(base_url=server.url + base).user.balance())
    assert (balance.is_available, balance.request_id) == (True, "trace-1")
    assert balance.balance_infos[0].total_balance == Decimal("110.10")
    assert (server.requests[0].method, server.requests[0].path) == ("GET", "/user/balance")


def form_of(request):
    """The fields of a multipart body, read by the standard library's parser."""
    head = b"content-type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
    parts = message_from_bytes(head + request.body).get_payload()
    return {
        part.get_param("name", header="content-disposition"): (part.get_filename(), part.get_payload(decode=True))
        for part in parts
    }


async def test_a_file_is_uploaded_from_a_path_bytes_or_an_open_file(server, connect, kit, tmp_path):
    path = tmp_path / 'a "b"\n.txt'
    path.write_bytes(b"a\r\nb\x00\xff")
    server.script(kit.reply(FILE))
    files = connect().files
    uploaded = await kit.settle(files.create(file=path, expires_after=3600))
    await kit.settle(files.create(file=("b.pdf", b"%PDF"), purpose="batch", extra_body={"more": 1}))
    with path.open("rb") as opened:
        await kit.settle(files.create(file=opened))
    await kit.settle(files.create(file=io.BytesIO(b"x")))
    assert (uploaded.id, uploaded.filename) == ("file-1", "a.txt")
    first, second, third, fourth = map(form_of, server.requests)
    assert first == {
        "purpose": (None, b"user_data"),
        "expires_after[anchor]": (None, b"created_at"),
        "expires_after[seconds]": (None, b"3600"),
        "file": ("a %22b%22%0A.txt", b"a\r\nb\x00\xff"),
    }
    assert second == {"purpose": (None, b"batch"), "more": (None, b"1"), "file": ("b.pdf", b"%PDF")}
    assert b"content-type: application/pdf" in server.requests[1].body
    assert third["file"] == first["file"]
    assert fourth["file"] == ("file", b"x")
    assert {request.path for request in server.requests} == {"/v1/files"}


async def test_an_upload_is_sent_again_whole(server, connect, kit):
    server.script(kit.reply({}, 503, retry_after="0"), kit.reply(FILE))
    await kit.settle(connect().files.create(file=("a.txt", b"abc")))
    assert server.requests[0].body == server.requests[1].body


async def test_a_list_of_files_asks_for_its_pages_as_they_are_needed(server, connect, kit):
    def page(*ids, has_more):
        return kit.reply({"object": "list", "data": [FILE | {"id": i} for i in ids], "has_more": has_more})

    server.script(page("a", "b", has_more=True), page("c", has_more=True), page(has_more=True))
    files = connect().files
    pager = files.list(purpose="user_data", limit=2, order="asc")
    assert server.requests == []
    assert [file.id for file in await kit.collect(pager)] == ["a", "b", "c"]
    assert [request.path for request in server.requests] == [
        "/v1/files?purpose=user_data&limit=2&order=asc",
        "/v1/files?purpose=user_data&limit=2&order=asc&after=b",
        "/v1/files?purpose=user_data&limit=2&order=asc&after=c",
    ]
    server.script(page("z", has_more=False))
    pages = await kit.collect(files.list(after="y", extra_query={"deep": True}).pages())
    assert [page.data[0].id for page in pages] == ["z"]
    assert server.requests[-1].path == "/v1/files?after=y&deep=true"


async def test_a_file_is_retrieved_and_deleted(server, connect, kit):
    server.script(kit.reply(FILE), kit.reply({"id": "file-1", "object": "file", "deleted": True}))
    files = connect().files
    assert (await kit.settle(files.retrieve("a/b"))).bytes == 3
    assert (await kit.settle(files.delete("file-1"))).deleted
    assert [(request.method, request.path, request.body) for request in server.requests] == [
        ("GET", "/v1/files/a%2Fb", b""),
        ("DELETE", "/v1/files/file-1", b""),
    ]


async def test_the_web_is_searched_and_fetched(server, connect, kit):
    found = {"title": "CATL", "url": "https://x", "rerank_score": 2.5, "summary": "s", "fresh": True}
    server.script(
        kit.reply({"results": [found]}), kit.reply({"title": "CATL", "url": "https://x", "content": "# CATL"})
    )
    client = connect(profile="deepseek")
    results = await kit.settle(client.tools.search("catl", count=3, need_content=True))
    assert (results.results[0].rerank_score, results.results[0].model_extra) == (2.5, {"fresh": True})
    page = await kit.settle(client.tools.fetch("https://x"))
    assert (page.title, str(page), page.markdown) == ("CATL", "# CATL", "# CATL")
    assert [(request.path, request.json) for request in server.requests] == [
        ("/v1/tools/search", {"query": "catl", "count": 3, "need_content": True}),
        ("/v1/tools/fetch", {"url": "https://x"}),
    ]


async def test_a_server_without_search_says_so(server, connect, kit):
    server.script(kit.reply({"detail": "Not Found"}, 404))
    with pytest.raises(NotFoundError):
        await kit.settle(connect().tools.search("x"))
