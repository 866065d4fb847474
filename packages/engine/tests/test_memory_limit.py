"""The real model in a process that may not have more memory: torch's own allocator fails, and no answer changes."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint

PROGRAM = """
    import json, logging, resource, sys
    from pathlib import Path
    from deepseek_engine.host_memory import return_freed_memory
    from deepseek_engine.llm import LLM
    from deepseek_engine.sampling_params import SamplingParams

    logging.basicConfig(level="ERROR")
    settings = {"num_threads": 1, "max_model_len": 2048, "enable_prefix_caching": False}
    llm = LLM(sys.argv[1], dtype="float32", **settings)
    prompts = [{"prompt_token_ids": [(i * i + n) % 200 for i in range(400 + 50 * n)]} for n in range(4)]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)

    def generate():
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs], llm.engine.step().stats.num_oom_events

    plenty = generate()
    return_freed_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 48 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps([plenty, generate()]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the limit is set from what Linux says")
def test_answers_are_the_same_when_the_allocator_has_no_memory_left(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", TinyModel(intermediate_size=16384))
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (plenty, num_before), (little, num_after) = json.loads(result.stdout)
    assert num_before == 0
    assert num_after > 0, "memory never ran out"
    assert little == plenty
