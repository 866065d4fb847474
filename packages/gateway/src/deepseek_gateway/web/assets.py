"""Static files, from memory, under URLs that change with their content."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.responses import Response

_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Assets:
    """All files by their path below `static`, and one hash over all of them.

    One hash for all: modules import each other by relative paths, so a page and its modules always fit together.
    """

    files: dict[str, bytes]
    version: str

    def url(self, name: str) -> str:
        """Where a file is.

        Raises:
            KeyError: there is no such file.
        """
        assert self.files[name] is not None
        return f"/ui/static/{self.version}/{name}"

    def response(self, version: str, name: str) -> Response | None:
        """A file, or None. Another version's URL gets today's file, not kept: a rolling upgrade mixes both."""
        body = self.files.get(name)
        if body is None:
            return None
        caching = FOREVER if version == self.version else "no-cache"
        return Response(body, headers={"content-type": _KINDS[name.rpartition(".")[2]], "cache-control": caching})


def load_assets() -> Assets:
    """The static files of this version."""
    found = dict(sorted(_walk(files("deepseek_gateway.web").joinpath("static"), "")))
    digest = hashlib.sha256()
    for name, body in found.items():
        digest.update(f"{name}\0{len(body)}\0".encode())
        digest.update(body)
    return Assets(found, digest.hexdigest()[:16])


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _KINDS:
            found.append((f"{prefix}{entry.name}", entry.read_bytes()))
    return found
