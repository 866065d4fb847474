"""`deepseek` as its users run it: a process, where a process is what matters."""

import json
import os
import signal
import subprocess
import sys

import pytest

from deepseek_client.sse import encode_event

PROGRAM = [sys.executable, "-m", "deepseek_client.cli"]


def environment(server, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_")}
    ours = {"DEEPSEEK_BASE_URL": server.url, "DEEPSEEK_API_KEY": "dsk_key", "DEEPSEEK_STATE_DIR": ""}
    return kept | ours | more


def heed_interrupts():
    """A shell starts its background jobs with SIGINT ignored, and so all that these start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(server, *arguments, stdin="", **more):
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin,
        env=environment(server, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_generate_streams_the_answer_to_the_terminal(server, kit):
    server.script(kit.events(kit.text_event("Hel"), kit.text_event("lo", "stop", usage=kit.USAGE)))
    done = run(server, "generate", "Hi", "--max-tokens", "9", "--temperature", "0", "--model", "m")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
    (request,) = server.requests
    assert request.json == {"prompt": "Hi", "max_tokens": 9, "temperature": 0.0, "model": "m", "stream": True}
    assert request.headers["authorization"] == "Bearer dsk_key"


def test_each_piece_is_written_when_it_comes(server, kit):
    def handler(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.text_event("Hel"))))
        connection.until_closed()

    server.script(handler)
    process = subprocess.Popen(
        [*PROGRAM, "generate", "Hi"], env=environment(server), stdout=subprocess.PIPE, preexec_fn=heed_interrupts
    )
    with process:
        assert process.stdout.read(3) == b"Hel"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert server.disconnected.wait(10)


def test_bytes_of_another_encoding_are_replaced_and_not_a_traceback(server, kit):
    server.script(kit.events(kit.text_event("é", "stop")), kit.events(kit.text_event("é", "stop")))
    for arguments, stdin in (([b"generate", b"caf\xe9"], b""), ([b"generate", b"-"], b"caf\xe9")):
        done = subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            env=environment(server, PYTHONUTF8="1"),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "é\n".encode(), b"")
    assert [request.json["prompt"] for request in server.requests] == ["caf\ufffd"] * 2


def test_an_answer_that_the_terminal_cannot_show_is_no_traceback(server, kit):
    server.script(kit.events(kit.text_event("a世", "stop")))
    done = run(server, "generate", "Hi", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a?\n", "")


def test_a_number_that_json_has_not_is_a_usage_error(server, kit):
    done = kit.run_cli(environment(server), "generate", "Hi", "--temperature", "nan")
    assert done.returncode == 2
    assert "--temperature: nan is not a finite number" in done.stderr
    assert not server.requests


def test_generate_reads_standard_input_and_prints_json(server, kit):
    server.script(kit.reply(kit.GENERATION))
    done = run(server, "generate", "-", "--json", stdin="from a pipe")
    assert json.loads(done.stdout) == kit.GENERATION
    assert server.requests[0].json["prompt"] == "from a pipe"


def test_generate_without_a_stream_prints_the_text(server, kit):
    server.script(kit.reply(kit.GENERATION))
    assert kit.run_cli(environment(server), "generate", "Hi", "--no-stream").stdout == "Hello\n"
    assert "stream" not in server.requests[0].json


def test_models_lists_ids(server, kit):
    server.script(kit.reply({"object": "list", "data": [{"id": "a"}, {"id": "b"}]}))
    assert kit.run_cli(environment(server), "models").stdout == "a\nb\n"
    assert json.loads(kit.run_cli(environment(server), "models", "--json").stdout)["data"] == [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (
            401,
            {"error": {"message": "unknown key"}},
            "deepseek: 401: unknown key (set DEEPSEEK_API_KEY or pass --api-key)",
        ),
        (422, {"error": {"message": "temperature=5:\nat most 2"}}, "deepseek: 422: temperature=5: at most 2"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(server, kit, status, body, line):
    server.script(kit.reply(body, status))
    done = kit.run_cli(environment(server), "generate", "Hi", "--no-stream")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{line}\n")


def test_a_wrong_setting_is_one_line_and_exit_code_2(server, kit):
    done = kit.run_cli(environment(server), "generate", "Hi", "--base-url", "localhost:80")
    assert done.returncode == 2
    assert done.stderr.startswith("deepseek: base_url='localhost:80' must start with http://")
    assert kit.run_cli(environment(server), "generate").returncode == 2
    assert kit.run_cli(environment(server), "generate", "Hi", "--timeout", "-1").returncode == 2


def test_chat_keeps_the_conversation_and_knows_its_commands(server, kit):
    server.script(kit.events(kit.chat_event("", role="assistant"), kit.chat_event("Hello", "stop")))
    lines = ["Hi", "/system Be brief.", "Again", "/reset", "/what", "Anew", "/exit", "never"]
    done = run(server, "chat", "--max-tokens", "7", stdin="\n".join(lines) + "\n")
    assert (done.returncode, done.stdout) == (0, "Hello\nHello\nHello\n")
    assert "there is no /what" in done.stderr
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    system = {"role": "system", "content": "Be brief."}
    assert [request.json["messages"] for request in server.requests] == [
        [user],
        [system, user, answer, {"role": "user", "content": "Again"}],
        [system, {"role": "user", "content": "Anew"}],
    ]
    assert {request.json["max_tokens"] for request in server.requests} == {7}


def test_ctrl_c_stops_the_answer_and_not_the_conversation(server, kit):
    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(kit.chat_event("Hel"))))
        connection.until_closed()

    server.script(endless, kit.events(kit.chat_event("again", "stop")))
    with subprocess.Popen(
        [*PROGRAM, "chat"],
        env=environment(server),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdin.write("Hi\n")
        process.stdin.flush()
        assert process.stdout.read(3) == "Hel"
        process.send_signal(signal.SIGINT)
        assert server.disconnected.wait(10)
        out, err = process.communicate("more\n/exit\n", timeout=30)
        assert (process.returncode, out) == (0, "\nagain\n")
        assert "(stopped)" in err
    assert server.requests[1].json["messages"][1] == {"role": "assistant", "content": "Hel"}


def test_a_failed_turn_is_not_remembered_and_the_conversation_goes_on(server, kit):
    server.script(
        kit.reply({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400),
        kit.events(kit.chat_event("Hello", "stop")),
    )
    done = kit.run_cli(environment(server), "chat", stdin="long\nshort\n")
    assert (done.returncode, done.stdout) == (0, "Hello\n")
    assert "deepseek: 400 context_length_exceeded: too long" in done.stderr
    assert server.requests[1].json["messages"] == [{"role": "user", "content": "short"}]


def test_a_reader_that_has_enough_is_no_error(server, kit):
    server.script(kit.events(*[kit.text_event("x" * 5000) for _ in range(100)], kit.text_event("", "stop")))
    with subprocess.Popen(
        [*PROGRAM, "generate", "Hi"],
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_the_console_script_is_installed(server):
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="deepseek")
    assert script.value == "deepseek_client.cli:main"
