"""Adapters through a server process, asked as a user asks: with the openai package, many at once."""

import concurrent.futures
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from safetensors.torch import load_file, save_file

from deepseek_engine import LLM, LoRARequest, SamplingParams
from deepseek_engine.testing.adapters import write_tiny_adapter
from deepseek_engine.testing.checkpoints import write_tiny_checkpoint
from processes import Server, program

KEY = "engine-key"
PROMPT = [(5 * i + i * i) % 256 for i in range(40)]
NAMES = ("alice", "bob", "carol", "dave")


@dataclass(frozen=True)
class Stage:
    """A running server with adapters on disk, and what each of them answers offline."""

    url: str
    adapters: Path
    expected: dict[str | None, list[int]]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def tokens(self, model: str, **body: object) -> list[int]:
        with self.client() as client:
            answer = client.completions.create(
                model=model, prompt=PROMPT, max_tokens=16, temperature=0,
                extra_body={"return_token_ids": True, "ignore_eos": True, **body},
            )  # fmt: skip
            return answer.choices[0].model_extra["token_ids"]

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers={"authorization": f"Bearer {KEY}"})

    def load(self, name: str, **body: object) -> httpx.Response:
        return self.post("/v1/load_lora_adapter", lora_name=name, **body)

    def models(self) -> dict[str, str | None]:
        with self.client() as client:
            return {model.id: (model.model_extra or {}).get("parent") for model in client.models.list()}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("lora-server")
    model = str(write_tiny_checkpoint(folder / "tiny"))
    adapters = folder / "adapters"
    for seed, name in enumerate(NAMES):
        write_tiny_adapter(adapters / name, seed=seed, rank=2 + seed)
    command = [
        program("deepseek-server"), "--model-path", model, "--port", "0", "--dtype", "float32", "--threads", "1",
        "--api-key", KEY, "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--lora-dir", str(adapters),
        "--lora", f"alice={adapters / 'alice'}", "--lora", f"bob={adapters / 'bob'}",
    ]  # fmt: skip
    server = Server(command, folder / "log")
    server.start()
    try:
        yield Stage(server.url(), adapters, _answers(model, adapters))
    finally:
        assert server.stop() == 0


def _answers(model: str, adapters: Path) -> dict[str | None, list[int]]:
    """What the base model and each adapter say, each alone in an engine of this process."""
    llm = LLM(model, dtype="float32", max_num_seqs=1, enable_lora=True, max_loras=1, num_kv_blocks=64)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    found: dict[str | None, list[int]] = {}
    for name in (None, *NAMES):
        request = None if name is None else LoRARequest(name, str(adapters / name))
        found[name] = llm.generate({"prompt_token_ids": PROMPT}, params, request)[0].outputs[0].token_ids
    assert len({tuple(tokens) for tokens in found.values()}) == len(found), "every adapter says something of its own"
    return found


def test_two_adapters_and_the_base_model_answer_at_once(stage: Stage) -> None:
    names = [None, "alice", "bob"] * 4
    with concurrent.futures.ThreadPoolExecutor(len(names)) as threads:
        answers = list(threads.map(lambda name: stage.tokens("tiny" if name is None else f"tiny:{name}"), names))
    assert answers == [stage.expected[name] for name in names]


def test_an_adapter_is_loaded_used_unloaded_and_gone(stage: Stage) -> None:
    assert "tiny:carol" not in stage.models()
    loaded = stage.load("carol")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'carol' added successfully.")
    assert stage.models() == {"tiny": None, "tiny:alice": "tiny", "tiny:bob": "tiny", "tiny:carol": "tiny"}
    assert stage.tokens("tiny:carol") == stage.expected["carol"]
    assert stage.load("carol").status_code == 400
    unloaded = stage.post("/v1/unload_lora_adapter", lora_name="carol")
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'carol' removed successfully.")
    with pytest.raises(openai.NotFoundError) as gone:
        stage.tokens("tiny:carol")
    assert gone.value.code == "model_not_found"
    assert stage.post("/v1/unload_lora_adapter", lora_name="carol").status_code == 404


def test_more_adapters_than_places_take_turns(stage: Stage) -> None:
    for name in ("carol", "dave"):
        assert stage.load(name).status_code == 200
    try:
        names = [*NAMES, None] * 3
        with concurrent.futures.ThreadPoolExecutor(len(names)) as threads:
            answers = list(threads.map(lambda name: stage.tokens("tiny" if name is None else f"tiny:{name}"), names))
        assert answers == [stage.expected[name] for name in names]
        metrics = httpx.get(f"{stage.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
        assert "deepseek_engine_adapters_resident 2.0" in metrics
        assert 'deepseek_engine_adapter_requests_total{adapter="dave"} 3.0' in metrics
    finally:
        for name in ("carol", "dave"):
            assert stage.post("/v1/unload_lora_adapter", lora_name=name).status_code == 200


def test_a_reloaded_adapter_never_meets_keys_of_the_one_before(stage: Stage) -> None:
    folder = stage.adapters / "changing"
    shutil.copytree(stage.adapters / "carol", folder)
    assert stage.load("changing").status_code == 200
    assert stage.tokens("tiny:changing") == stage.expected["carol"]
    shutil.rmtree(folder)
    shutil.copytree(stage.adapters / "dave", folder)
    assert stage.load("changing", load_inplace=True).status_code == 200
    assert stage.tokens("tiny:changing") == stage.expected["dave"]
    assert stage.post("/v1/unload_lora_adapter", lora_name="changing").status_code == 200


def test_a_corrupt_adapter_is_refused_by_its_tensor(stage: Stage) -> None:
    folder = stage.adapters / "broken"
    shutil.copytree(stage.adapters / "alice", folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    save_file(tensors | {name: tensors[name][:, :1].contiguous()}, file)
    refused = stage.load("broken")
    assert refused.status_code == 400
    assert name in refused.json()["error"]["message"]
    file.write_bytes(file.read_bytes()[:500])
    assert stage.load("broken").status_code == 400
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    assert "use_dora" in stage.load("broken").json()["error"]["message"]
    assert stage.tokens("tiny:alice") == stage.expected["alice"]


@pytest.mark.parametrize("path", ["../tiny", "/etc", ".", "no-such-folder", "alice/../..", "a\0b"])
def test_a_path_outside_the_adapter_folder_is_refused(stage: Stage, path: str) -> None:
    refused = stage.load("escapee", lora_path=path)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "lora_path"


def test_a_link_out_of_the_adapter_folder_is_refused(stage: Stage) -> None:
    (stage.adapters / "link").symlink_to(stage.adapters.parent / "tiny")
    assert stage.load("link").status_code == 400


@pytest.mark.parametrize("name", ["", "with space", "a:b", "../alice", "x" * 129])
def test_a_bad_name_is_refused(stage: Stage, name: str) -> None:
    assert stage.load(name, lora_path="alice").status_code == 400


@pytest.mark.parametrize("model", ["tiny:nobody", "other:alice", "alice", "tiny:", ":alice"])
def test_an_unknown_model_is_404(stage: Stage, model: str) -> None:
    answer = stage.post("/v1/completions", model=model, prompt="x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_loading_needs_the_key(stage: Stage) -> None:
    answer = httpx.post(f"{stage.url}/v1/load_lora_adapter", json={"lora_name": "carol"})
    assert answer.status_code == 401
