"""The real server over a real core process that computes nothing: what is measured from outside is all ours.

    python packages/engine/benchmarks/idle_server.py --sequences 256 --step-ms 9

Prints one line of JSON when it is ready, with its URL and the ids of its two processes, and serves until a signal.
Answers are English words of the default model's tokenizer, one token each with the space before it; or numbers, as
models of a `shape:` have them.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
from pathlib import Path

import uvloop

from deepseek_engine.async_engine import AsyncEngine
from deepseek_engine.bench.serving.prompts import WORDS
from deepseek_engine.config import EngineConfig
from deepseek_engine.server.lifecycle import Lifecycle
from deepseek_engine.server.listener import bind_socket, describe_socket
from deepseek_engine.server.settings import ServerSettings
from deepseek_engine.server.state import ServerState
from deepseek_engine.tokenizer import load_tokenizer

CONTEXT_LEN = 8192
BLOCK_SIZE = 16


async def serve(num_sequences: int, step_s: float, model: str) -> int:
    """Serve until a signal comes; the exit status."""
    tokenizer = load_tokenizer(model)
    texts = [str(100 * number + 7) for number in range(100)] if model.startswith("shape:") else WORDS
    token_ids = [ids[0] for text in texts if len(ids := tokenizer.encode(f" {text}", add_special_tokens=False)) == 1]
    said = ",".join(map(str, token_ids))
    config = EngineConfig(
        model=f"idle?step_s={step_s}&vocab_size={tokenizer.vocab_size}&token_ids={said}",
        max_model_len=CONTEXT_LEN,
        max_num_seqs=num_sequences,
        max_num_batched_tokens=8192,
        num_kv_blocks=(num_sequences + 1) * CONTEXT_LEN // BLOCK_SIZE,
        block_size=BLOCK_SIZE,
    )
    # The core finds the runner by its name, here.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])
    engine = await AsyncEngine.start(config, runner="idle_runner:build_idle_runner")
    settings = ServerSettings(model_path=model, port=0)
    bound = bind_socket(settings)
    state = ServerState(engine, tokenizer, settings)
    gc.collect()
    gc.freeze()  # as the server does

    def say_ready() -> None:
        core = engine._process.pid  # noqa: SLF001 - what is measured
        print(json.dumps({"url": describe_socket(bound), "server": os.getpid(), "core": core}), flush=True)

    try:
        return await Lifecycle(state, bound, say_ready).run()
    finally:
        bound.close()


def main() -> int:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=256, help="in one step at most")
    parser.add_argument("--step-ms", type=float, default=9.0, help="how long a step takes")
    parser.add_argument("--model", default="smollm2", help="whose tokenizer; shape:seed-3.4b has one of numbers")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(options.sequences, options.step_ms / 1000, options.model))


if __name__ == "__main__":
    sys.exit(main())
