"""Read JSON of an expected kind, or refuse it by its path."""

from typing import Any, Never, cast

from deepseek_gateway.errors import ApiError

Fields = dict[str, Any]


def as_object(value: Any, path: str) -> Fields:
    """An object.

    Raises:
        ApiError: 400, it is something else.
    """
    return cast("Fields", value) if isinstance(value, dict) else _refuse(value, path, "an object")


def as_list(value: Any, path: str) -> list[Any]:
    """A list.

    Raises:
        ApiError: 400, it is something else.
    """
    return cast("list[Any]", value) if isinstance(value, list) else _refuse(value, path, "a list")


def as_text(value: Any, path: str) -> str:
    """A string.

    Raises:
        ApiError: 400, it is something else.
    """
    return value if isinstance(value, str) else _refuse(value, path, "a string")


def is_one_of(value: Any, *known: str) -> bool:
    """Whether it is one of these words. A list, which no set takes, is none."""
    return isinstance(value, str) and value in known


def unsupported(path: str, what: str) -> ApiError:
    """The refusal of something that is known and not here."""
    return ApiError(400, f"{path}: {what}", param=path, code="unsupported")


def _refuse(value: Any, path: str, expected: str) -> Never:
    if value is None:
        raise ApiError(400, f"{path} is missing: give {expected}", param=path)
    raise ApiError(400, f"{path}={str(value)[:80]!r} is not {expected}", param=path)
