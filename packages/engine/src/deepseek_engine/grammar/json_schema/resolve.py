"""References within a schema, and the limits on its size."""

from collections.abc import Iterator
from typing import Any, Final, cast
from urllib.parse import unquote

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.limits import MAX_ENUM_VALUES, MAX_NESTING, MAX_PROPERTIES

Schema = dict[str, Any]

_MAX_STEPS: Final = 4_000
_ANNOTATIONS: Final = frozenset(
    {
        "title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "$schema",
        "$defs", "definitions", "contentEncoding", "contentMediaType", "contentSchema",
    }
)  # fmt: skip


class Resolver:
    """Finds what a reference names.

    Args:
        root: the whole schema.

    Raises:
        GrammarError: it is too large or too deep.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._num_steps = 0
        _check_limits(root)

    def count_step(self) -> None:
        """Merging can multiply: a bound on the work as a whole.

        Raises:
            GrammarError: the schema takes too many steps.
        """
        self._num_steps += 1
        if self._num_steps > _MAX_STEPS:
            raise GrammarError("the schema has too many combinations of allOf, anyOf and oneOf")

    def resolve(self, reference: Any) -> Any:
        """The schema that `$ref` names.

        Raises:
            GrammarError: it is outside of this schema, or does not exist.
        """
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise GrammarError(
                f"$ref={reference!r}: only references within the schema are supported, like #/$defs/name"
            )
        node = self._root
        for part in unquote(reference[1:]).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = cast("Schema", node)[key]
                if isinstance(node, dict) and "$id" in cast("Schema", node):
                    raise GrammarError(
                        f"$ref={reference!r} leads through a schema with an $id of its own: remove the $id"
                    )
            elif isinstance(node, list) and key.isdigit() and int(key) < len(cast("list[Any]", node)):
                node = cast("list[Any]", node)[int(key)]
            else:
                raise GrammarError(f"$ref={reference!r}: there is no {key!r}")
        return cast("Any", node)


def without_annotations(schema: Schema) -> Schema:
    """The keywords that restrict."""
    return {key: value for key, value in schema.items() if key not in _ANNOTATIONS}


def as_schema(value: object) -> Schema | bool:
    """A subschema, checked to be one.

    Raises:
        GrammarError: it is none.
    """
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise GrammarError(f"a schema must be an object, true or false, not {type(value).__name__}")
    return cast("Schema", value)


def as_schemas(value: Any, keyword: str) -> list[Schema | bool]:
    """A list of subschemas that is not empty.

    Raises:
        GrammarError: it is none.
    """
    if not isinstance(value, list) or not value:
        raise GrammarError(f"{keyword} must be a list of schemas that is not empty")
    return [as_schema(each) for each in cast("list[Any]", value)]


def as_count(value: Any, keyword: str) -> int:
    """A number of characters, items or properties.

    Raises:
        GrammarError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise GrammarError(f"{keyword}={value!r} must be a whole number from 0 on")
    return int(value)


def _check_limits(root: Any) -> None:
    num_properties = 0
    stack: list[tuple[Any, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_NESTING:
            raise GrammarError(f"the schema is nested more than {MAX_NESTING} deep")
        if isinstance(node, dict):
            fields = cast("Schema", node)
            properties = fields.get("properties")
            num_properties += len(cast("Schema", properties)) if isinstance(properties, dict) else 0
            values = fields.get("enum")
            if isinstance(values, list) and len(cast("list[Any]", values)) > MAX_ENUM_VALUES:
                count = len(cast("list[Any]", values))
                raise GrammarError(f"enum has {count} values: at most {MAX_ENUM_VALUES} are allowed")
        stack += [(child, depth + 1) for child in _children(node)]
    if num_properties > MAX_PROPERTIES:
        raise GrammarError(f"the schema has {num_properties} properties: at most {MAX_PROPERTIES} are allowed")


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from cast("Schema", node).values()
    elif isinstance(node, list):
        yield from cast("list[Any]", node)
