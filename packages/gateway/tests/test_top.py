"""`deepseek-gateway top`, on a running gateway."""

import asyncio

import pytest

from deepseek_gateway.cli.top import Source
from deepseek_gateway.errors import GatewayError
from deepseek_gateway.testing.processes import gateway_command
from deepseek_gateway.testing.stack import Stack
from deepseek_gateway.top.samples import Samples, Span
from deepseek_gateway.top.view import KeyUse, Screen, plain


def samples(at_s: float, count: int) -> Samples:
    lines = [
        f'deepseek_gateway_requests_total{{route="/v1/generate",status="200"}} {count}',
        'deepseek_gateway_requests_total{route="/v1/generate",status="502"} 0',
        f'deepseek_gateway_time_to_first_token_seconds_bucket{{le="0.1",route="x"}} {count / 2}',
        f'deepseek_gateway_time_to_first_token_seconds_bucket{{le="0.2",route="x"}} {count}',
        f'deepseek_gateway_time_to_first_token_seconds_bucket{{le="+Inf",route="x"}} {count}',
        'deepseek_gateway_upstream_up{upstream="http://a \\"b\\""} 1',
    ]
    return Samples.parse("# HELP x y\n" + "\n".join(lines), at_s)


def test_rates_and_quantiles_are_of_the_time_between_two_readings() -> None:
    span = Span(samples(10, 100), samples(12, 300))
    assert span.rate("requests_total") == 100
    assert span.quantile("time_to_first_token_seconds", 0.5) == pytest.approx(0.1)
    assert span.quantile("time_to_first_token_seconds", 0.95) == pytest.approx(0.19)
    assert Span(None, samples(12, 300)).rate("requests_total") is None


def test_a_restart_between_two_readings_gives_no_negative_rate() -> None:
    span = Span(samples(10, 100), samples(12, 4))
    assert span.rate("requests_total") == 2
    assert span.quantile("time_to_first_token_seconds", 0.5) == pytest.approx(0.1)


def test_without_color_there_are_no_control_characters_and_names_cannot_bring_them() -> None:
    text = Screen("http://g", color=False).draw(
        Span(None, samples(1, 4)), "no engine is up", [KeyUse("abc", "bad\x1b[2Jname", 3, 40)]
    )
    assert "\x1b" not in text
    assert "not ready: no engine is up" in text
    assert "bad?[2Jname" in text
    assert plain("a\nb") == "a?b"


async def test_it_shows_a_running_gateway(stack: Stack) -> None:
    for _ in range(3):
        await stack.caller.post()
    await stack.row()
    done = await asyncio.to_thread(gateway_command, "top", "--once", "--interval", "0.1", "--url", stack.running.url)
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stdout
    assert stack.served.url in done.stdout
    assert "KEY TODAY" not in done.stdout


async def test_a_gateway_that_is_not_there_is_named(stack: Stack) -> None:
    assert await asyncio.to_thread(Source(stack.running.url, "dsk_wrong", None).keys) is None
    with pytest.raises(GatewayError, match="cannot be reached"):
        await asyncio.to_thread(Source("http://127.0.0.1:9", None, None).samples)
    done = await asyncio.to_thread(gateway_command, "top", "--once", "--url", "file:///etc/passwd")
    assert done.returncode == 1
