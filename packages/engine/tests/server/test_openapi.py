"""`/openapi.json` says what there is, and requests made up from it find no fault: no 500, no answer it does not allow.

`FUZZ_EXAMPLES=1000` asks for more than the suite's few requests an operation; `nox -s fuzz` does so.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.openapi import from_dict
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.routing import Route

from deepseek_client.sse import SSEParser
from deepseek_engine.server.app import create_app_for
from deepseek_engine.server.openapi.document import build_document
from deepseek_engine.server.openapi.operations import OPERATIONS
from deepseek_engine.testing.adapters import write_tiny_adapter
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint

START_S = 60
NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
DOCUMENT = build_document(has_key=False)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process with a tiny model, adapters and all; its log may hold no unexpected failure."""
    folder = tmp_path_factory.mktemp("openapi")
    shape = TinyModel(max_position_embeddings=256)
    write_tiny_checkpoint(folder / "model", shape)
    write_tiny_adapter(folder / "adapters" / "a0", shape)
    command = [
        sys.executable, "-m", "deepseek_engine.server", "--model-path", str(folder / "model"), "--port", "0",
        "--served-model-name", "tiny", "--dtype", "float32", "--threads", "1", "--max-tokens", "8", "--enable-lora",
        "--lora-dir", str(folder / "adapters"), "--allow-lora-loading", "--grammar-timeout", "1",
    ]  # fmt: skip
    log = folder / "server.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENGINE_")}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            yield _wait_ready(process, log)
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()


def _wait_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"ready on (http://\S+?):? model=", log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def _operations() -> list[Any]:
    return [result.ok() for result in from_dict(DOCUMENT).get_all_operations()]


@pytest.mark.parametrize("operation", _operations(), ids=lambda operation: operation.label)
def test_no_request_made_from_the_document_finds_a_fault(operation: Any, url: str):
    _fuzz(operation, GenerationMode.POSITIVE, url)
    if operation.body:
        _fuzz(operation, GenerationMode.NEGATIVE, url)


def _fuzz(operation: Any, mode: GenerationMode, url: str) -> None:
    @settings(
        max_examples=NUM_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        response = case.call(base_url=url, timeout=60)
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=CHECKS)
        if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
            _check_stream(operation.path, response.content)

    run()


def _check_stream(path: str, body: bytes) -> None:
    """Events are chunks up to `[DONE]`, or up to an error."""
    *events, last = SSEParser().feed(body)
    chunk = next(each.chunk for each in OPERATIONS if path.endswith(each.path))
    schema = {"$ref": f"#/components/schemas/{chunk.__name__}", "components": DOCUMENT["components"]}
    for event in events:
        jsonschema.validate(json.loads(event.data), schema)
    if last.event == "error":
        error = {"$ref": "#/components/schemas/ErrorBody", "components": DOCUMENT["components"]}
        jsonschema.validate(json.loads(last.data), error)
    else:
        assert last.data == "[DONE]"


def test_every_route_is_in_the_document_and_nothing_else():
    routed = {
        (method, re.sub(r"{(\w+)(:\w+)?}", r"{\1}", route.path))
        for route in _routes()
        for method in route.methods or ()
        if method != "HEAD" and route.path.startswith("/v1")
    }
    assert routed == {(operation.method, f"/v1{operation.path}") for operation in OPERATIONS}


def _routes() -> list[Route]:
    class Nothing:
        """Stands in for what no route asks for before a request comes."""

        def __getattr__(self, name: str) -> Any:
            return Nothing() if name != "api_key" else None

    entrance: Any = create_app_for(Nothing())  # pyright: ignore[reportArgumentType]
    return entrance._app.routes


def test_the_server_serves_its_document(url: str):
    answer = httpx.get(f"{url}/openapi.json")
    assert answer.json() == json.loads(json.dumps(DOCUMENT))
    assert answer.headers["content-type"] == "application/json"


def test_a_wrong_method_names_the_right_one(url: str):
    answer = httpx.get(f"{url}/v1/generate")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["type"] == "invalid_request_error"
