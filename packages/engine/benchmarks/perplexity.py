"""What types and INT8 cost in quality: the perplexity of a model on two fixed texts, each beside that in float32.

    python packages/engine/benchmarks/perplexity.py --model smollm2

The texts come with Debian and with Python, and are checked by their SHA-256: the GNU General Public License 3, and the
changes of IDLE for Python 2. They are cut into windows of `--window` tokens, which are scored apart from each other
(the first token of each is not counted). Writes nothing but the table, and a line of JSON.
"""

import argparse
import hashlib
import json
import math
import sys
import sysconfig
from pathlib import Path
from typing import Final

import torch

from deepseek_engine import LLM, __version__

TEXTS: Final = {
    "GPL-3": (
        Path("/usr/share/common-licenses/GPL-3"),
        "3972dc9744f6499f0f9b2dbf76696f2ae7ad8af9b23dde66d6af86c9dfb36986",
    ),
    "NEWS2x": (
        Path(sysconfig.get_path("stdlib")) / "idlelib" / "NEWS2x.txt",
        "c89a3b513501ebace8e428aea68dce39d0af9f29196e08fc9ea49c99605e79e7",
    ),
}
FORMS: Final = (("float32", None), ("bfloat16", None), ("float32", "int8"), ("bfloat16", "int8"))
"""Type of computation, and of weights."""


def read_text(name: str, folder: Path | None) -> str:
    """One of the texts, from its place or a folder of copies; ends the program if it is not there, or not the same."""
    path, digest = TEXTS[name]
    path = path if folder is None else folder / path.name
    if not path.is_file():
        sys.exit(f"{path} is not on this machine: choose other --texts")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit(f"{path} is another version: its SHA-256 is not {digest}")
    return data.decode("utf-8")


def perplexity(llm: LLM, text: str, window: int) -> tuple[float, int]:
    """Of a text, and how many tokens it was measured on."""
    token_ids = llm.tokenizer.encode(text)
    windows = [token_ids[start : start + window] for start in range(0, len(token_ids), window)]
    outputs = llm.score([{"prompt_token_ids": ids} for ids in windows if len(ids) > 1])
    scored = [entry.logprob for output in outputs for entry in output.prompt_logprobs or () if entry is not None]
    return math.exp(-math.fsum(scored) / len(scored)), len(scored)


def main() -> None:
    """Measure every form on every text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--window", type=int, default=1024, help="tokens that see each other (default 1024)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--forms", nargs="+", help="as float32 bfloat16+int8; float32 has to come first")
    parser.add_argument("--text-folder", type=Path, help="where the texts are, on a machine that has other versions")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    options = parser.parse_args()
    texts = {name: read_text(name, options.text_folder) for name in options.texts}
    found: dict[str, dict[str, float]] = {}
    print(f"{'text':8} {'tokens':>7}  {'form':16} {'perplexity':>10}  ratio to float32")
    for dtype, quantization in FORMS:
        if options.device == "cuda" and (dtype, quantization) == ("float32", "int8"):
            continue  # refused there
        if options.forms and dtype + ("" if quantization is None else f"+{quantization}") not in options.forms:
            continue
        form = dtype if quantization is None else f"{quantization}, {dtype}"
        settings = {"dtype": dtype, "quantization": quantization, "max_model_len": options.window}
        with LLM(options.model, device=options.device, **settings) as llm:
            for name, text in texts.items():
                value, count = perplexity(llm, text, options.window)
                found.setdefault(name, {})[form] = value
                ratio = value / found[name]["float32"]
                print(f"{name:8} {count:7}  {form:16} {value:10.4f}  {ratio:.5f}", flush=True)
    versions = {"engine": __version__, "torch": torch.__version__}
    print(
        json.dumps(
            {"model": options.model, "device": options.device, "window": options.window, "perplexity": found} | versions
        )
    )


if __name__ == "__main__":
    main()
