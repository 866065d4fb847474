"""Put the parts together and serve: socket, then model and tokenizer side by side, then HTTP."""

import asyncio
import gc
import logging
import socket
import time
from pathlib import Path

from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_source import as_hub_model, start_download
from deepseek_engine.request_log.log_file import LogFile
from deepseek_engine.server.lifecycle import Lifecycle
from deepseek_engine.server.listener import bind_socket, describe_socket, remove_socket_file
from deepseek_engine.server.settings import ServerSettings
from deepseek_engine.server.state import ServerState
from deepseek_engine.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


async def serve(settings: ServerSettings) -> int:
    """Serve until a signal comes or the core dies; the process's exit status.

    Raises:
        ListenError: the address cannot be listened on.
        InvalidRequestError: the request log cannot be written.
        ModelLoadError, EngineStartError: the model cannot be loaded.
    """
    start_s = time.perf_counter()
    request_log = _request_log(settings)
    bound = bind_socket(settings)
    try:
        settings = await _fetch_model(settings)
        starting = asyncio.create_task(AsyncEngine.start(settings.engine_config, request_log=request_log))
        try:
            tokenizer = await asyncio.to_thread(_load_tokenizer, settings)
            engine = await starting
        except BaseException:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            raise
        state = ServerState(engine, tokenizer, settings)
        if request_log is not None:
            state.metrics.watch_request_log(lambda: request_log.num_lost)
        # What was loaded stays for good: a collector that walks through it holds up every stream meanwhile.
        gc.collect()
        gc.freeze()
        return await Lifecycle(state, bound, lambda: _log_ready(state, bound, start_s)).run()
    finally:
        bound.close()
        remove_socket_file(settings)


def _request_log(settings: ServerSettings) -> LogFile | None:
    if settings.request_log is None:
        return None
    log = LogFile(settings.request_log, settings.request_log_max_bytes)
    logger.warning("all requests and answers are written to %s", log.path)
    return log


async def _fetch_model(settings: ServerSettings) -> ServerSettings:
    """Settings that name a local model: what is on the Hub is downloaded once, for this process and the core."""
    hub_model = as_hub_model(settings.model_path)
    if hub_model is None:
        return settings
    with start_download(hub_model) as download:  # a signal ends it with the block, and the thread with it
        path = await asyncio.to_thread(download.wait)
    return settings.model_copy(update={"model_path": str(path), "served_model_name": settings.model_names})


def _load_tokenizer(settings: ServerSettings) -> Tokenizer:
    template = None if settings.chat_template is None else _read_template(settings.chat_template)
    return load_tokenizer(settings.model_path, chat_template=template, chat_format=settings.chat_format)


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"the chat template {path} cannot be read: {error}") from error


def _log_ready(state: ServerState, bound: socket.socket, start_s: float) -> None:
    info = state.engine.info
    logger.info(
        "ready on %s: model=%s device=%s dtype=%s context=%d kv_blocks=%d startup_s=%.1f load_s=%.1f",
        describe_socket(bound),
        state.settings.model_names[0],
        info.device,
        info.dtype,
        state.context_len,
        info.num_blocks,
        time.perf_counter() - start_s,
        info.load_s,
    )
