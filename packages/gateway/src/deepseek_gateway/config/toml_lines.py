"""On which line of a TOML file a key stands: the parser of the standard library does not say."""

import re

TomlPath = tuple[str | int, ...]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


class TomlLines:
    """Lines by path, such as `("upstreams", 1, "weight")`; what stands inside braces has the line of its key.

    The text must be valid TOML. Lines of a multi-line string that look like keys may be taken for some: an error then
    names a line too many, no more.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[TomlPath, int] = {}
        self._counts: dict[TomlPath, int] = {}
        table: TomlPath = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(line):
                table = self._open(header[2], is_array=header[1] == "[[")
                self._lines.setdefault(table, number)
            elif key := _KEY.match(line):
                self._lines.setdefault(self._resolve(table, _parts(key[1])), number)

    def find(self, path: TomlPath) -> int | None:
        """The line of a path, or of the nearest thing around it."""
        for end in range(len(path), 0, -1):
            if (line := self._lines.get(path[:end])) is not None:
                return line
        return None

    def _open(self, name: str, *, is_array: bool) -> TomlPath:
        parts = _parts(name)
        if not is_array:
            return self._resolve((), parts)
        path = (*self._resolve((), parts[:-1]), parts[-1])
        at = self._counts[path] = self._counts.get(path, -1) + 1
        return (*path, at)

    def _resolve(self, path: TomlPath, parts: list[str]) -> TomlPath:
        """Within arrays of tables, a name means their last table."""
        for part in parts:
            path = (*path, part)
            if path in self._counts:
                path = (*path, self._counts[path])
        return path


def _parts(name: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(name)]
