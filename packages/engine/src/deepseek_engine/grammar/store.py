"""GrammarStore: the core's compiled grammars. Compiling happens in a thread, so that the loop never waits for it."""

import importlib
import importlib.util
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.protocol import Grammar, GrammarBackend
from deepseek_engine.grammar.source import GrammarSource
from deepseek_engine.messages import GrammarTotals
from deepseek_engine.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

MAX_CACHE_BYTES: Final = 256 * 2**20
_NICENESS: Final = 10
INSTALL_HINT: Final = "pip install 'deepseek-engine[structured]'"


class GrammarStore:
    """Compiles sources and keeps what was used last.

    Attributes:
        totals: what compiling has taken so far; the first includes loading the library.

    Args:
        load_backend: loads the library and the vocabulary, which takes seconds; called when the first source comes.
        on_ready: called in the compiling thread when a grammar is ready. None: `get` compiles in its caller's thread.
        max_bytes: of compiled grammars that are kept; those in use by a running answer live on without it.
    """

    def __init__(
        self,
        load_backend: Callable[[], GrammarBackend],
        on_ready: Callable[[], None] | None = None,
        max_bytes: int = MAX_CACHE_BYTES,
    ) -> None:
        self._load_backend = load_backend
        self._on_ready = on_ready
        self._max_bytes = max_bytes
        self._backend: GrammarBackend | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._compiling: dict[bytes, Future[Grammar]] = {}
        self._compiled: OrderedDict[bytes, Grammar] = OrderedDict()
        self._num_bytes = 0
        self.totals = GrammarTotals()

    @property
    def num_bytes(self) -> int:
        """Of the grammars that are kept."""
        return self._num_bytes

    def get(self, source: GrammarSource) -> Grammar | None:
        """The compiled grammar; None while it is being compiled: ask again once `on_ready` was called.

        Raises:
            GrammarError: it cannot be compiled.
        """
        key = source.digest
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
        if self._on_ready is None:
            return self._keep(key, self._compile(source))
        future = self._compiling.get(key)
        if future is None:
            future = self._compiling[key] = self._submit(source)
        if not future.done():
            return None
        del self._compiling[key]
        return self._keep(key, future.result())

    def is_ready(self, source: GrammarSource) -> bool:
        """Whether `get` would give an answer now."""
        future = self._compiling.get(source.digest)
        return future is None or future.done()

    def _submit(self, source: GrammarSource) -> Future[Grammar]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar", initializer=_step_back)
        future = self._thread.submit(self._compile, source)
        future.add_done_callback(self._announce)
        return future

    def _announce(self, _: Future[Grammar]) -> None:
        assert self._on_ready is not None
        self._on_ready()

    def _compile(self, source: GrammarSource) -> Grammar:
        started = time.perf_counter()
        try:
            if self._backend is None:
                self._backend = self._load_backend()
            return self._backend.compile(source)
        except GrammarError:
            raise
        except Exception as error:  # whatever a library or a broken tokenizer may raise ends this request only
            logger.exception("a grammar could not be compiled")
            raise GrammarError(f"the grammar could not be compiled: {error!r}") from error
        finally:
            self.totals = GrammarTotals(
                self.totals.num_compiled + 1, self.totals.compile_s + time.perf_counter() - started
            )

    def _keep(self, key: bytes, grammar: Grammar) -> Grammar:
        self._compiled[key] = grammar
        self._num_bytes += grammar.num_bytes
        while self._num_bytes > self._max_bytes and len(self._compiled) > 1:
            _, dropped = self._compiled.popitem(last=False)
            self._num_bytes -= dropped.num_bytes
        return grammar


def load_backend_of(model: str, num_logits: int) -> GrammarBackend:
    """The backend for a model's own tokenizer.

    Args:
        model: as `load_tokenizer` takes it.
        num_logits: width of its logits.

    Raises:
        GrammarError: xgrammar is not installed.
    """
    return make_backend(load_tokenizer(model), num_logits)


def make_backend(tokenizer: Tokenizer, num_logits: int) -> GrammarBackend:
    """The backend for a tokenizer; imports xgrammar, which imports transformers, and both take a second.

    Raises:
        GrammarError: xgrammar is not installed.
    """
    check_installed()
    module = importlib.import_module("deepseek_engine.grammar.xgrammar_backend")
    return module.XGrammarBackend(tokenizer.vocabulary(), tokenizer.eos_token_ids, num_logits, tokenizer.special_tokens)


def check_installed() -> None:
    """Raise unless xgrammar is there; does not import it.

    Raises:
        GrammarError: it is not.
    """
    if importlib.util.find_spec("xgrammar") is None:
        raise GrammarError(f"structured output needs xgrammar, which is not installed: {INSTALL_HINT}")


def _step_back() -> None:
    """Let the compiling thread run where the others leave time: on Linux niceness is a thread's own."""
    if hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError:
            logger.debug("the grammar thread keeps its priority", exc_info=True)
