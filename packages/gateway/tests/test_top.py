"""`deepseek-gateway top`, on a running gateway."""

import asyncio
from pathlib import Path

import pytest

from deepseek_gateway.cli import main
from deepseek_gateway.cli.top import Source
from deepseek_gateway.errors import GatewayError
from deepseek_gateway.testing.certificates import Authority
from deepseek_gateway.testing.processes import GATEWAY, RunningProcess, gateway_command, make_state
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


def test_a_gateway_that_asks_for_certificates_is_shown_to_who_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers, callers = Authority("servers"), Authority("callers")
    certificate, key = servers.issue("localhost").write(tmp_path / "server")
    mine, mine_key = callers.issue("ops").write(tmp_path / "mine")
    server_ca, client_ca = tmp_path / "server-ca.pem", tmp_path / "client-ca.pem"
    server_ca.write_bytes(servers.pem)
    client_ca.write_bytes(callers.pem)
    state = tmp_path / "state"
    make_state(state)
    files = {"CERTIFICATE": certificate, "KEY": key, "CLIENT_CA": client_ca}
    variables = {f"GATEWAY_TLS_{name}": str(path) for name, path in files.items()}
    serve = ("serve", "--state", str(state), "--host", "localhost", "--port", "0", "--upstream", "http://127.0.0.1:9")
    with RunningProcess([*GATEWAY, *serve], env=variables) as gateway:
        port = gateway.line("listening on").rpartition(":")[2]
        top = ("top", "--once", "--interval", "0.1", "--url", f"https://localhost:{port}", "--ca", str(server_ca))
        assert main([*top, "--cert", str(mine), "--key", str(mine_key)]) == 0
        assert "not ready" in capsys.readouterr().out
        assert main(top) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--url", "http://localhost:1", "--cert", "c.pem"), "--cert need an https:// URL"),
        (("--url", "https://localhost:1", "--key", "k.pem"), "--key is of the certificate in --cert"),
        (("--url", "https://localhost:1", "--cert", "/nowhere/c.pem"), "--cert cannot be used: No such file"),
        (("--url", "https://localhost:1", "--ca", __file__), "--ca cannot be used"),
    ],
)
def test_certificates_that_cannot_be_used_are_told(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str
) -> None:
    assert main(["top", "--once", *flags]) == 1
    assert says in capsys.readouterr().err
