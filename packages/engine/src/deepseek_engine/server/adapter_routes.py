"""Loading and unloading LoRA adapters over HTTP, in vLLM's shape. Off unless the server was told to allow it."""

import asyncio
from pathlib import Path
from typing import TypeVar

import pydantic
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from deepseek_client.types import WireModel
from deepseek_engine.errors import AdapterError
from deepseek_engine.server.errors import ApiError, validation_error
from deepseek_engine.server.http import read_body
from deepseek_engine.server.state import ServerState

Wire = TypeVar("Wire", bound=WireModel)


class LoadRequest(WireModel):
    """`lora_path` is a folder under the server's adapter folder; by default the one called like the adapter."""

    lora_name: str
    lora_path: str | None = None
    load_inplace: bool = False


class UnloadRequest(WireModel):
    """Which adapter to forget."""

    lora_name: str


class AdapterRoutes:
    """Handlers over one server's state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def load(self, request: Request) -> Response:
        """Load an adapter; with `load_inplace` it may replace one of the same name."""
        folder = self._adapter_folder()
        asked = await self._parse(request, LoadRequest)
        path = await asyncio.to_thread(_inside, folder, asked.lora_path or asked.lora_name)
        await self._state.engine.adapters.load(asked.lora_name, str(path), replace=asked.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """Forget an adapter; running requests finish with it."""
        self._adapter_folder()
        asked = await self._parse(request, UnloadRequest)
        await self._state.engine.adapters.unload(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    def _adapter_folder(self) -> Path:
        self._state.check_available()
        settings = self._state.settings
        is_allowed = settings.allow_lora_loading or settings.api_key is not None
        if not settings.enable_lora or settings.lora_dir is None or not is_allowed:
            raise ApiError(
                403,
                "adapters cannot be loaded over HTTP here: the server needs --enable-lora, --lora-dir, and "
                "--api-key or --allow-lora-loading",
            )
        return Path(settings.lora_dir)

    async def _parse(self, request: Request, kind: type[Wire]) -> Wire:
        body = await read_body(request.scope, request.receive, self._state.settings.max_body_bytes)
        try:
            return kind.model_validate_json(body, strict=True)
        except pydantic.ValidationError as error:
            raise validation_error(error) from None


def _inside(folder: Path, given: str) -> Path:
    """The folder that a caller names, which has to be within ours once links are followed."""
    root = folder.resolve()
    try:
        path = (root / given).resolve()
    except (OSError, ValueError) as error:
        raise AdapterError(f"lora_path={given[:200]!r} is not a path: {error}") from error
    if path == root or not path.is_relative_to(root):
        raise AdapterError(f"lora_path={given[:200]!r} is not within the server's --lora-dir")
    if not path.is_dir():
        raise AdapterError(f"lora_path={given[:200]!r} is not a folder in the server's --lora-dir")
    return path
