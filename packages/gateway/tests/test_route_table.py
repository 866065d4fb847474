"""Paths find their handlers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.errors import ApiError
from deepseek_gateway.routes.table import RouteTable


async def nothing(*_: object) -> None: ...


async def other(*_: object) -> None: ...


@pytest.fixture(scope="module")
def table() -> RouteTable:
    table = RouteTable()
    table.get("/keys", nothing)
    table.post("/keys", other)
    table.get("/keys/{id}", nothing)
    table.add("DELETE", "/keys/{id}", other)
    table.post("/keys/{id}/rotate", other)
    table.get("/models/{name...}", nothing)
    table.mount("/admin/", other)
    return table


@pytest.mark.parametrize(
    ("method", "path", "handler", "names"),
    [
        ("GET", "/keys", nothing, {}),
        ("HEAD", "/keys", nothing, {}),
        ("POST", "/keys", other, {}),
        ("GET", "/keys/a", nothing, {"id": "a"}),
        ("DELETE", "/keys/a", other, {"id": "a"}),
        ("POST", "/keys/{id}/rotate", other, {"id": "{id}"}),
        ("GET", "/models/a/b:c", nothing, {"name": "a/b:c"}),
        ("PUT", "/admin/keys/a", other, {}),
    ],
)
def test_a_path_finds_its_handler_and_names(table: RouteTable, method: str, path: str, handler, names: dict) -> None:
    assert table.find(method, path) == (handler, names)


MISSING = ("/", "", "/keys/", "/keys//rotate", "/keys/a/", "/keys/a/rotate/b", "/models/", "/key")


@pytest.mark.parametrize("path", MISSING)
def test_what_is_not_there_is_a_404(table: RouteTable, path: str) -> None:
    with pytest.raises(ApiError) as refused:
        table.find("GET", path)
    assert refused.value.status == 404


def test_another_method_is_a_405_that_names_those_that_are_there(table: RouteTable) -> None:
    for path, allowed in (("/keys", "GET, POST"), ("/keys/a", "GET, DELETE"), ("/keys/a/rotate", "POST")):
        with pytest.raises(ApiError) as refused:
            table.find("PUT", path)
        assert (refused.value.status, refused.value.headers["allow"]) == (405, allowed)


def test_all_routes_are_told_once(table: RouteTable) -> None:
    told = list(table)
    assert len(told) == len(set(told)) == 6
    assert ("POST", "/keys/{id}/rotate") in told


@given(st.text(max_size=20), st.text(max_size=40))
def test_no_path_breaks_the_table(method: str, path: str) -> None:
    table = RouteTable()
    table.get("/a/{b}/{c...}", nothing)
    try:
        _, names = table.find(method, path)
    except ApiError as refused:
        names = {"status": refused.status}
    assert names.get("status") in (404, 405) or all(names.values())
