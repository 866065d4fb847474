"""The table of routes: which handler serves a method of a path."""

from collections.abc import Iterator

from starlette.types import ASGIApp

from deepseek_gateway.errors import ApiError

_Methods = dict[str, ASGIApp]


class RouteTable:
    """Paths with their methods. `{name}` stands for one segment of a path, `{name...}` for all that is left.

    Paths without such parts are found in one step, whatever the table's size.
    """

    def __init__(self) -> None:
        self._exact: dict[str, _Methods] = {}
        self._templates: dict[tuple[str, ...], _Methods] = {}
        self._mounts: dict[str, ASGIApp] = {}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each (method, path)."""
        for path, methods in self._exact.items():
            yield from ((method, path) for method in methods)
        for parts, methods in self._templates.items():
            yield from ((method, "/" + "/".join(parts)) for method in methods)

    def add(self, method: str, path: str, handler: ASGIApp) -> None:
        """Serve a method of a path."""
        is_template = "{" in path
        methods = self._templates.setdefault(_split(path), {}) if is_template else self._exact.setdefault(path, {})
        assert method not in methods, f"{method} {path} is there twice"
        methods[method] = handler

    def get(self, path: str, handler: ASGIApp) -> None:
        """Serve GET, and HEAD with it."""
        self.add("GET", path, handler)

    def post(self, path: str, handler: ASGIApp) -> None:
        """Serve POST."""
        self.add("POST", path, handler)

    def mount(self, prefix: str, handler: ASGIApp) -> None:
        """Leave all that begins so to another table, whatever its method; it is not among this one's pairs."""
        self._mounts[prefix] = handler

    def find(self, method: str, path: str) -> tuple[ASGIApp, dict[str, str]]:
        """The handler, and what stands in the path for the template's names.

        Raises:
            ApiError: 404, there is no such path; 405, it does not take this method.
        """
        if path not in self._exact:
            for prefix, mounted in self._mounts.items():
                if path.startswith(prefix):
                    return mounted, {}
        methods, names = self._methods(path)
        handler = methods.get(method)
        if handler is None and method == "HEAD":
            handler = methods.get("GET")
        if handler is None:
            allowed = ", ".join(methods)
            raise ApiError(405, f"{path[:200]} takes {allowed}, not {method[:20]}", headers={"allow": allowed})
        return handler, names

    def _methods(self, path: str) -> tuple[_Methods, dict[str, str]]:
        methods = self._exact.get(path)
        if methods is not None:
            return methods, {}
        given = _split(path)
        for template, methods in self._templates.items():
            names = _match(template, given)
            if names is not None:
                return methods, names
        raise ApiError(404, f"there is nothing at {path[:200]}", code="not_found")


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.removeprefix("/").split("/"))


def _match(template: tuple[str, ...], given: tuple[str, ...]) -> dict[str, str] | None:
    names: dict[str, str] = {}
    for at, part in enumerate(template):
        if part.endswith("...}"):
            names[part[1:-4]] = "/".join(given[at:])
            return names if names[part[1:-4]] else None
        if at >= len(given):
            return None
        if part.startswith("{"):
            if not given[at]:
                return None
            names[part[1:-1]] = given[at]
        elif part != given[at]:
            return None
    return names if len(given) == len(template) else None
