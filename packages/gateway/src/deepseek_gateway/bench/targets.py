"""What is measured: the engine directly, this gateway with everything on, and LiteLLM."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_gateway.bench.load import Endpoint
from deepseek_gateway.bench.mock_engine import CHUNKS
from deepseek_gateway.bench.process import BenchError, Child

GATEWAY = (sys.executable, "-m", "deepseek_gateway")
MOCK_ENGINE = (sys.executable, "-m", "deepseek_gateway.bench.mock_engine")
LITELLM_KEY = "sk-bench-master"
LITELLM_ENV = {
    # Every help that it can have without a database: no price list from the network, no debug output, no telemetry.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_MASTER_KEY": LITELLM_KEY,
    "LITELLM_TELEMETRY": "False",
    "NO_DOCS": "True",
}
LIMITS = (
    "--rpm",
    "100000000",
    "--tpm",
    "1000000000000",
    "--concurrent",
    "100000",
    "--tokens-per-month",
    "1000000000000",
)
"""Limits of every kind, none of which is reached."""


@dataclass(slots=True)
class Target:
    """One running target. `start_s` are seconds from process start to the first answer, one for each start."""

    name: str
    endpoint: Endpoint
    child: Child | None
    start_s: list[float] = field(default_factory=list[float])
    rss_idle_mib: float = 0.0

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far; none for the engine, which is what all others are compared with."""
        return 0.0 if self.child is None else self.child.cpu_s()


def start_engine() -> tuple[Child, str]:
    """The mock engine, and its URL."""
    child = Child("engine", MOCK_ENGINE)
    return child, child.url()


def start_ours(engine_url: str, folder: Path, starts: int, keys: tuple[str, ...] = ()) -> Target:
    """This gateway, with a key that has limits of every kind, and the ledger on disk."""
    state = folder / "state"
    if not keys:
        gateway_output("migrate", "--state", str(state))
        keys = (
            json.loads(gateway_output("key", "create", "--state", str(state), "--name", "bench", *LIMITS, "--json"))[
                "key"
            ],
        )
    port = free_port()
    command = (*GATEWAY, "serve", "--state", str(state), "--upstream", engine_url, "--port", str(port))
    env = {"GATEWAY_MAX_REQUESTS": "100000", "GATEWAY_LOG_LEVEL": "info"}
    return _started("ours", command, env, Endpoint(f"http://127.0.0.1:{port}", keys), starts)


def start_litellm(engine_url: str, folder: Path, starts: int, environment: Path) -> Target:
    """LiteLLM's proxy of a virtual environment, one worker, with its master key: others need a database."""
    models = [
        {
            "model_name": name.decode(),
            "litellm_params": {
                "model": f"openai/{name.decode()}",
                "api_base": f"{engine_url}/v1",
                "api_key": "sk-upstream",
            },
        }
        for name in CHUNKS
    ]
    config = folder / "litellm.yaml"
    settings = {"telemetry": False, "set_verbose": False, "request_timeout": 600}
    general = {"master_key": LITELLM_KEY}
    config.write_text(  # JSON is YAML
        json.dumps({"model_list": models, "general_settings": general, "litellm_settings": settings})
    )
    port = free_port()
    command = (
        str(environment / "bin" / "litellm"),
        *("--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
    )
    return _started("litellm", command, LITELLM_ENV, Endpoint(f"http://127.0.0.1:{port}", (LITELLM_KEY,)), starts)


def litellm_environment(given: Path | None) -> Path:
    """The virtual environment with LiteLLM: the given one, or one in the cache folder, made there with pip at first.

    Raises:
        BenchError: it cannot be made, or has no LiteLLM.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = given or base / "deepseek-bench" / "litellm"
    if (environment / "bin" / "litellm").exists():
        return environment
    if given is not None:
        raise BenchError(f"{given} holds no bin/litellm: pip install 'litellm[proxy]' there")
    sys.stderr.write(f"installing litellm[proxy] into {environment}\n")
    for command in (
        (sys.executable, "-m", "venv", str(environment)),
        (str(environment / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed commands
        if done.returncode:
            raise BenchError(f"LiteLLM cannot be installed; --skip-litellm does without:\n{done.stderr[-1000:]}")
    return environment


def litellm_version(environment: Path) -> str:
    """Of the package."""
    code = "from importlib.metadata import version; print(version('litellm'))"
    command = (str(environment / "bin" / "python"), "-c", code)
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Where states and configurations live."""
    return tempfile.TemporaryDirectory(prefix="deepseek-bench-")


def _started(name: str, command: tuple[str, ...], env: dict[str, str], endpoint: Endpoint, starts: int) -> Target:
    times: list[float] = []
    while True:
        child = Child(name, command, env)
        try:
            _wait_for_answer(endpoint, child)
        except BaseException:
            child.stop()
            raise
        times.append(time.perf_counter() - child.started_s)
        if len(times) >= starts:
            return Target(name, endpoint, child, times, child.rss_mib())
        child.stop()


def _wait_for_answer(endpoint: Endpoint, child: Child) -> None:
    raw = endpoint.request("bench", stream=False)
    _, _, body = raw.partition(b"\r\n\r\n")
    headers = {"content-type": "application/json", "authorization": f"Bearer {endpoint.keys[0]}"}
    request = urllib.request.Request(f"{endpoint.url}/v1/chat/completions", body, headers)  # noqa: S310  our own http URL
    while True:
        child.check()
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 503:  # it listens, and does not know its engine yet
                raise BenchError(f"{child.name} answers {error.code}: {error.read()[:500]!r}") from None
            time.sleep(0.01)
        except OSError:
            time.sleep(0.01)
        else:
            return


def gateway_output(*arguments: str, env: dict[str, str] | None = None) -> str:
    """What one command of the gateway prints.

    Raises:
        BenchError: it failed.
    """
    variables = {**os.environ, **(env or {})}
    done = subprocess.run((*GATEWAY, *arguments), capture_output=True, text=True, env=variables, check=False)  # noqa: S603
    if done.returncode:
        raise BenchError(f"deepseek-gateway {arguments[0]} failed: {done.stderr}")
    return done.stdout
