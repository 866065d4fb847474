"""`deepseek-gateway bench`: every figure is there, and counted right."""

import json
import os
import subprocess
import sys

import pytest

from deepseek_engine.bench.cli import main as engine_bench
from deepseek_gateway.bench.load import Connection, Endpoint, LoadError, closed_loop, together
from deepseek_gateway.bench.measures import Plan, Results
from deepseek_gateway.bench.report import add_differences
from deepseek_gateway.bench.targets import start_engine
from deepseek_gateway.testing.processes import DEADLINE_S, GATEWAY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_quick_run_ends_in_one_line_of_json_with_every_figure() -> None:
    command = [*GATEWAY, "bench", "--quick", "--skip-litellm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["benchmark"] == "gateway"
    assert report["faults"] == {}
    assert {"python", "uvicorn", "httptools"} <= report["versions"].keys()
    wanted = {
        "rate_50_added_p50_ms",
        "rate_50_added_p99_ms",
        "callers_1_rps",
        "callers_16_cpu_us",
        "paced_cpu_us_per_chunk",
        "burst_chunks_per_s",
        "ttft_added_p50_ms",
        "held_streams",
        "held_kib_per_stream",
        "rss_idle_mib",
        "start_s",
    }
    assert wanted <= report["targets"]["ours"].keys()
    assert report["targets"]["direct"]["machine_p99_over_p50"]["min"] >= 1
    assert report["targets"]["ours"]["held_streams"]["median"] == Plan.quick().held_streams


async def test_load_counts_the_chunks_that_the_mock_engine_sends() -> None:
    engine, url = start_engine()
    try:
        endpoint = Endpoint(url, ("sk-any",))
        streams = await together(endpoint, "bench", 3)
        bodies = await closed_loop(endpoint, "bench", 2, 0.02, stream=False)
    finally:
        engine.stop()
    # 64 words and the chunk with the finish_reason; [DONE] is no chunk.
    assert [answer.chunks for answer in streams.answers] == [65] * 3
    assert bodies.answers
    assert bodies.chunks == 0


async def test_an_answer_that_is_no_200_ends_the_load() -> None:
    engine, url = start_engine()
    connection = await Connection.open(Endpoint(url, ("sk-any",)))
    asked = connection.start(b"GET /ready HTTP/1.1\r\n\r\n")
    await asked
    asked = connection.start(b"")
    connection.data_received(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(LoadError, match="429"):
        await asked
    connection.close()
    engine.stop()


def test_added_latency_is_the_percentile_less_the_direct_mean_of_its_round() -> None:
    results, plan = Results(), Plan(rates=(50.0,))
    for direct, ours in ((1.0, 3.0), (2.0, 5.0)):
        results.add("direct", {"rate_50_mean_ms": direct, "rate_50_p50_ms": direct})
        results.add("ours", {"rate_50_p50_ms": ours})
    add_differences(plan, results)
    assert results.rounds["ours"]["rate_50_added_p50_ms"] == [2.0, 3.0]


def test_engines_bench_program_reaches_the_gateways(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        engine_bench(["gateway", "--help"])
    assert ended.value.code == 0
    assert "LiteLLM" in capsys.readouterr().out


def test_bench_does_not_load_torch() -> None:
    code = "import sys, deepseek_gateway.bench.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "False"
