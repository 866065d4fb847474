"""What the package promises as a whole: two equal surfaces, a light import, one module that knows the HTTP library."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepseek_client
from deepseek_client import endpoints, errors, raw, streaming
from deepseek_client.client import AsyncDeepSeek, DeepSeek
from deepseek_client.resources import account, chat, completions
from deepseek_client.types import Generation

SOURCE = Path(deepseek_client.__file__).parent
PAIRS = [
    (DeepSeek, AsyncDeepSeek),
    (chat.Chat, chat.AsyncChat),
    (chat.ChatCompletions, chat.AsyncChatCompletions),
    (completions.Completions, completions.AsyncCompletions),
    (completions.Fim, completions.AsyncFim),
    (account.Models, account.AsyncModels),
    (completions.Responses, completions.AsyncResponses),
    (account.Files, account.AsyncFiles),
    (account.Tokens, account.AsyncTokens),
    (account.WebTools, account.AsyncWebTools),
    (account.User, account.AsyncUser),
    (endpoints.Pager, endpoints.AsyncPager),
    (raw.StreamingResponse, raw.AsyncStreamingResponse),
    (streaming.Stream, streaming.AsyncStream),
    (streaming.TextStream, streaming.AsyncTextStream),
    (streaming.ChatStream, streaming.AsyncChatStream),
]


def public(cls):
    return {name: value for name, value in inspect.getmembers(cls) if not name.startswith("_")}


def plain(text):
    """A docstring or annotation without what must differ between the two."""
    text = re.sub(r"\bAsync(?=[A-Z])|\basync |asyncio|Async(?=Client)", "", str(text))
    return text.replace("__aenter__", "__enter__")


@pytest.mark.parametrize(("sync", "other"), PAIRS)
def test_sync_and_async_have_the_same_surface(sync, other):
    names = public(other).keys() - {"aclose"}
    assert public(sync).keys() == names
    for name in names:
        ours, theirs = inspect.getattr_static(sync, name), inspect.getattr_static(other, name)
        if callable(ours):
            left, right = inspect.signature(ours), inspect.signature(theirs)
            assert plain(left.parameters.values()) == plain(right.parameters.values()), name
            assert plain(left.return_annotation) == plain(right.return_annotation), name
            if "event loop" not in (theirs.__doc__ or ""):
                assert plain(ours.__doc__) == plain(theirs.__doc__), name


def all_errors(cls=errors.DeepSeekError):
    yield cls
    for sub in cls.__subclasses__():
        yield from all_errors(sub)


@pytest.mark.parametrize("cls", sorted(set(all_errors()), key=lambda cls: cls.__name__))
def test_every_error_pickles_and_is_exported(cls):
    needs = {"phase": "idle"} if issubclass(cls, errors.APITimeoutError) else {}
    if issubclass(cls, errors.APIStatusError):
        needs = {"status_code": 418, "code": "c", "headers": {"a": "b"}, "body": {"x": 1}, "retry_after": 2.0}
    if issubclass(cls, errors.FinishReasonError):
        needs = {"finish_reason": "length"}
    if cls is errors.ToolRoundsError:
        needs = {"messages": [{"role": "user", "content": "Hi"}]}
    error = cls("it broke", request_id="req-1", **needs)
    error.retries_taken = 2
    error.snapshot = Generation(id="g", text="Hel")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
    assert copy.partial_text == "Hel"
    assert getattr(deepseek_client, cls.__name__) is cls


def test_every_exported_name_resolves_and_others_do_not():
    for name in deepseek_client.__all__:
        assert getattr(deepseek_client, name).__name__ == name
    assert set(deepseek_client.__all__) <= set(dir(deepseek_client))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = deepseek_client.Nothing


def test_the_http_library_is_imported_in_one_module():
    importing = [
        path.name for path in SOURCE.rglob("*.py") if re.search(r"(import|from) httpx|\"httpx2?\"", path.read_text())
    ]
    assert importing == ["library.py"]


@pytest.mark.parametrize(
    "module", ["deepseek_client", "deepseek_client.sse", "deepseek_client.types", "deepseek_client.core"]
)
def test_importing_a_part_loads_no_http_library(module):
    code = f"import sys, {module}; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_types_import_nothing_of_ours():
    for path in (SOURCE / "types").glob("*.py"):
        for line in re.findall(r"^(?:from|import) (deepseek_client\S*)", path.read_text(), re.M):
            assert line.startswith("deepseek_client.types"), path


def test_the_version_is_the_distribution_s():
    from importlib.metadata import version

    from deepseek_client import __version__

    assert version("deepseek-client") == __version__
