"""A GPU whose memory is taken away in service: requests end as they should, in smaller steps."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

PROGRAM = """
    import json, logging
    import torch
    from deepseek_engine.llm import LLM
    from deepseek_engine.sampling_params import SamplingParams

    logging.basicConfig(level="WARNING")
    llm = LLM(
        "shape:seed-3.4b", device="cuda", dtype="bfloat16", max_num_batched_tokens=8192,
        max_model_len=8192, kv_cache_memory_bytes=4 << 30, enable_prefix_caching=False,
    )
    prompts = [{"prompt_token_ids": [(i * i + n) % 90000 for i in range(6000 + 500 * n)]} for n in range(4)]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)

    def generate():
        outputs = llm.generate(prompts, params, use_tqdm=False)
        ends = [(len(output.outputs[0].token_ids), output.outputs[0].finish_reason) for output in outputs]
        return ends, llm.engine.step().stats.num_oom_events

    plenty = generate()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    taken = torch.empty(free - (300 << 20), dtype=torch.uint8, device="cuda")
    little = generate()
    del taken
    torch.cuda.empty_cache()
    print(json.dumps([plenty, little, generate()]))
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_requests_end_properly_when_another_takes_the_memory() -> None:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    whole = [[8, "length"]] * 4
    (plenty, none), (little, some), (again, _) = json.loads(result.stdout)
    assert none == 0
    assert some > 0, "memory never ran out"
    assert plenty == little == again == whole
    assert "memory ran out in a step of" in result.stderr
