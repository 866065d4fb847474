"""Schemas of a suite through structured output: which are refused, and whether any finished answer breaks one.

    python packages/engine/benchmarks/json_schema_suite.py SUITE/tests/draft2020-12 --count 1000

takes the schemas of the JSON Schema Test Suite (https://github.com/json-schema-org/JSON-Schema-Test-Suite; the source
distribution of the package `jsonschema` has it under `json/`), then fills up with random ones of its own generator.
A tiny model of random weights answers under each grammar at temperature 1: only the grammar makes an answer right.
"""

import argparse
import json
import platform
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema

from deepseek_engine.errors import GrammarError, InvalidRequestError
from deepseek_engine.grammar.describe import json_schema_source
from deepseek_engine.grammar.params import StructuredOutputsParams
from deepseek_engine.llm import LLM
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint

_BATCH = 16


@dataclass
class Tally:
    """What came of the schemas."""

    num_schemas: int = 0
    num_valid: int = 0
    num_truncated: int = 0
    num_unchecked: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    invalid: list[tuple[Any, str]] = field(default_factory=list)
    compile_s: list[float] = field(default_factory=list)


def suite_schemas(folder: Path) -> Iterator[Any]:
    """The schemas of the suite's files, in order."""
    for path in sorted(folder.rglob("*.json")):
        for case in json.loads(path.read_text()):
            yield case["schema"]


def random_schema(choose: random.Random, depth: int = 3) -> Any:
    """A schema of the kind that callers write: nested objects and arrays with bounds, enums, alternatives."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    kinds += ["object", "object", "object", "array", "array", "anyOf"] if depth else []
    match kind := choose.choice(kinds):
        case "object":
            names = choose.sample(["id", "name", "tags", "size", "a b", "ü", 'q"', "x.y"], choose.randint(0, 4))
            return {
                "type": "object",
                "properties": {name: random_schema(choose, depth - 1) for name in names},
                "required": [name for name in names if choose.random() < 0.6],
                **({"additionalProperties": choose.random() < 0.2} if choose.random() < 0.7 else {}),
            }
        case "array":
            low = choose.randint(0, 2)
            return {"type": "array", "items": random_schema(choose, depth - 1), "minItems": low, "maxItems": low + 2}
        case "anyOf":
            return {"anyOf": [random_schema(choose, depth - 1) for _ in range(choose.randint(1, 3))]}
        case "string":
            return {"type": "string", "minLength": choose.randint(0, 3), "maxLength": choose.randint(3, 12)}
        case "integer" | "number":
            low = choose.randint(-1000, 1000)
            return {"type": kind, "minimum": low, "maximum": low + choose.randint(0, 5000)}
        case "enum":
            return {"enum": choose.sample(["a", 'b"\\', "日", 1, 2.5, None, True, [1], {"k": "v"}], 3)}
        case "const":
            return {"const": choose.choice(["x", -0.5, {"a": [None]}])}
        case "pattern":
            return {"type": "string", "pattern": choose.choice(["^[a-z]{2,5}$", r"^\d{3}-\d{4}$", "^(ab|c)+$"])}
        case "format":
            return {"type": "string", "format": choose.choice(["date", "date-time", "uuid", "ipv4", "email"])}
        case _:
            return {"type": kind}


def run_batch(llm: LLM, schemas: list[Any], tally: Tally, max_tokens: int) -> None:
    """Answer some schemas at once, and check the answers that have ended."""
    params = [_params(schema, max_tokens, seed) for seed, schema in enumerate(schemas)]
    for schema, result in zip(schemas, llm.generate(["JSON: "] * len(schemas), params), strict=True):
        answer = result.outputs[0]
        if answer.finish_reason != "stop":
            tally.num_truncated += 1
            continue
        try:
            value = json.loads(answer.text)
            jsonschema.Draft202012Validator(schema).validate(value)
            tally.num_valid += 1
        except re.error:  # a pattern of JavaScript's that Python, and so the validator, does not read
            tally.num_unchecked += 1
        except (ValueError, jsonschema.ValidationError) as error:
            tally.invalid.append((schema, f"{answer.text[:200]}: {error!s:.200}"))


def _params(schema: Any, max_tokens: int, seed: int) -> SamplingParams:
    described = StructuredOutputsParams(json=schema)
    return SamplingParams(temperature=1.0, max_tokens=max_tokens, seed=seed, structured_outputs=described)


def run(llm: LLM, schemas: list[Any], max_tokens: int) -> Tally:
    """Compile each schema, answer those that are not refused."""
    tally, accepted = Tally(num_schemas=len(schemas)), list[Any]()
    for schema in schemas:
        started = time.perf_counter()
        try:
            json_schema_source(schema)
            llm.generate("x", _params(schema, 1, 0))  # compiles it
        except (GrammarError, InvalidRequestError) as error:
            tally.refused[_kind(str(error))] += 1
            continue
        tally.compile_s.append(time.perf_counter() - started)
        accepted.append(schema)
    for start in range(0, len(accepted), _BATCH):
        run_batch(llm, accepted[start : start + _BATCH], tally, max_tokens)
    return tally


def _kind(message: str) -> str:
    """A refusal without the place and the values that it names."""
    return message.split(": ", 1)[-1].split("=")[0][:60]


def report(tally: Tally, seconds: float, arguments: argparse.Namespace) -> str:
    """The result as Markdown."""
    compile_ms = [each * 1000 for each in tally.compile_s]
    cuts = statistics.quantiles(compile_ms, n=100)
    lines = [
        f"# JSON schemas under grammars, {time.strftime('%Y-%m-%d')}",
        "",
        f"`json_schema_suite.py SUITE/tests/draft2020-12 --count {arguments.count} --max-tokens {arguments.max_tokens} "
        f"--source '{arguments.source}'`; Python {platform.python_version()}, xgrammar {version('xgrammar')}, "
        f"jsonschema {version('jsonschema')}, {platform.machine()}, one thread, {seconds:.0f} s.",
        "",
        f"Schemas: {tally.num_schemas}, of which {arguments.num_suite} from {arguments.source}, the others from the "
        "script's generator with seed 0. One answer each from a random tiny model (259 tokens), temperature 1.",
        "",
        "| what | number |",
        "|---|---|",
        f"| finished and valid | {tally.num_valid} |",
        f"| finished and **invalid** | {len(tally.invalid)} |",
        f"| finished, with a pattern that the validator cannot read | {tally.num_unchecked} |",
        f"| cut off by max_tokens | {tally.num_truncated} |",
        f"| refused with a reason | {tally.refused.total()} |",
        "",
        f"From schema to first token: median {cuts[49]:.1f} ms, p95 {cuts[94]:.1f} ms, p99 {cuts[98]:.1f} ms, "
        f"most {max(compile_ms):.0f} ms.",
        "",
        "Refused:",
        "",
        *(f"- {count} x {reason}" for reason, count in tally.refused.most_common()),
        *(f"- INVALID: {json.dumps(schema)}: {why}" for schema, why in tally.invalid),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="folder of the suite's tests of one draft")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--source", default="the JSON Schema Test Suite", help="what the folder is, for the report")
    arguments = parser.parse_args()
    schemas = list(suite_schemas(arguments.suite))[: arguments.count]
    arguments.num_suite = len(schemas)
    choose = random.Random(0)
    schemas += [random_schema(choose) for _ in range(arguments.count - len(schemas))]
    with tempfile.TemporaryDirectory() as folder:
        shape = TinyModel(max_position_embeddings=2048)
        llm = LLM(str(write_tiny_checkpoint(Path(folder), shape)), dtype="float32", num_kv_blocks=512)
        started = time.perf_counter()
        tally = run(llm, schemas, arguments.max_tokens)
        print(report(tally, time.perf_counter() - started, arguments), end="")


if __name__ == "__main__":
    main()
