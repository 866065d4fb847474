"""`deepseek chat` on a real pseudo-terminal, and what it keeps between runs."""

import json
import os
import pty
import select
import subprocess
import sys

import pytest

from deepseek_client.sse import encode_event
from deepseek_client.testing import answer, chat_chunk, reply

PROGRAM = [sys.executable, "-m", "deepseek_client.cli"]


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, environ, *arguments):
        self.master, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments], env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.unread = bytearray()

    def read_until(self, wanted):
        """What the program writes up to `wanted`, that included."""
        wanted = wanted.encode()
        while wanted not in self.unread:
            assert select.select([self.master], [], [], 20)[0], bytes(self.unread)
            self.unread.extend(os.read(self.master, 65536))
        end = self.unread.index(wanted) + len(wanted)
        found = bytes(self.unread[:end]).decode()
        del self.unread[:end]
        return found

    def type(self, text):
        data = text.encode()
        while data:  # the terminal takes what it has room for, and echoes it
            readable, writable, _ = select.select([self.master], [self.master], [], 20)
            if readable:
                self.unread.extend(os.read(self.master, 65536))
            if writable:
                data = data[os.write(self.master, data[:1024]) :]

    def leave(self):
        self.read_until("> ")
        self.type("/exit\r")
        self.read_until("/exit")
        assert self.process.wait(20) == 0


@pytest.fixture
def environ(server, tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DEEPSEEK_", "NO_COLOR"))}
    ours = {
        "DEEPSEEK_BASE_URL": server.url,
        "DEEPSEEK_API_KEY": "dsk_key",
        "DEEPSEEK_STATE_DIR": str(tmp_path / "state"),
    }
    return kept | ours | {"TERM": "xterm", "INPUTRC": os.devnull}


@pytest.fixture
def open_chat(environ):
    opened = []

    def start(*arguments):
        opened.append(Terminal(environ, "chat", *arguments))
        return opened[-1]

    yield start
    for terminal in opened:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()
        os.close(terminal.master)


def test_markdown_is_styled_and_reasoning_dimmed_on_a_terminal_and_plain_in_a_pipe(server, environ, open_chat, kit):
    text = "# Title\nIt is **bold**."
    server.script(answer(text, reasoning="Hmm, let me see."))
    terminal = open_chat()
    terminal.read_until("> ")
    terminal.type("Hi\r")
    terminal.read_until(
        "\x1b[2mHmm, let me see.\x1b[0m\r\n\r\n\x1b[1m\x1b[4mTitle\x1b[0m\r\nIt is \x1b[1mbold\x1b[0m.\r\n"
    )
    terminal.leave()
    assert kit.run_cli(environ, "chat", stdin="Hi\n").stdout == f"{text}\n"
    assert kit.run_cli(environ, "generate", "Hi").stdout == f"{text}\n"


def test_an_answer_cannot_steer_the_terminal(server, environ, open_chat, kit):
    steering = "a\x1b[2J\x9b1Ab\x07\r\nc\td"
    server.script(answer(steering))
    for options in ([], ["--plain"]):
        terminal = open_chat(*options)
        terminal.read_until("> ")
        terminal.type("Hi\r")
        terminal.read_until("a\ufffd[2J\ufffd1Ab\ufffd\r\nc\td\r\n")
        terminal.leave()
    assert kit.run_cli(environ, "chat", stdin="Hi\n").stdout == f"{steering}\n"


def test_plain_shows_no_styles(server, open_chat):
    server.script(answer("**a**"))
    terminal = open_chat("--plain")
    terminal.read_until("> ")
    terminal.type("Hi\r")
    terminal.read_until("**a**\r\n")
    terminal.leave()


def test_a_paste_of_many_long_lines_is_one_message(server, open_chat):
    server.script(answer("Hello"))
    terminal = open_chat()
    terminal.read_until("> ")
    pasted = "\n".join(f"line {n} " + "x" * 500 for n in range(40)) + "\n世界 /exit"
    terminal.type(f"\x1b[200~{pasted}\x1b[201~\r")
    terminal.read_until("Hello\r\n")
    terminal.leave()
    assert server.request.json["messages"] == [{"role": "user", "content": pasted}]


def test_a_backslash_goes_on_with_the_next_line_and_a_path_is_no_command(server, open_chat):
    server.script(answer("Hello"))
    terminal = open_chat()
    terminal.read_until("> ")
    terminal.type("/usr/bin is what?\\\r")
    terminal.read_until("… ")
    terminal.type("Say.\r")
    terminal.read_until("Hello\r\n")
    terminal.leave()
    assert server.request.json["messages"][0]["content"] == "/usr/bin is what?\nSay."


def test_ctrl_c_at_the_terminal_stops_the_answer_and_not_the_program(server, open_chat):
    def endless(connection):
        connection.head()
        connection.chunk(encode_event(json.dumps(chat_chunk("**Hel"))))
        connection.until_closed()

    server.script(endless, answer("again"))
    terminal = open_chat()
    terminal.read_until("> ")
    terminal.type("Hi\r")
    terminal.read_until("Hel")
    terminal.type("\x03")
    terminal.read_until("\x1b[0m\r\n(stopped)")
    assert server.disconnected.wait(10)
    terminal.read_until("> ")
    terminal.type("half a line\x03")
    terminal.read_until("(/exit leaves)")
    terminal.read_until("> ")
    terminal.type("more\r")
    terminal.read_until("again\r\n")
    terminal.leave()
    assert [message["content"] for message in server.requests[1].json["messages"]] == ["Hi", "**Hel", "more"]


def test_typed_lines_come_back_with_the_arrow_keys_also_in_the_next_run(server, open_chat, tmp_path):
    server.script(answer("Hello"))
    first = open_chat()
    first.read_until("> ")
    first.type("Hi there\r")
    first.read_until("Hello\r\n")
    first.leave()
    again = open_chat()
    again.read_until("> ")
    again.type("\x1b[A\x1b[A")
    again.read_until("Hi there")
    again.type("\r")
    again.read_until("Hello\r\n")
    again.read_until("> ")
    again.type("\t/he\t")
    again.read_until("/help ")
    again.type("\r")
    again.read_until("/retry")
    again.leave()
    assert [request.json["messages"][-1]["content"] for request in server.requests] == ["Hi there"] * 2
    assert (tmp_path / "state" / "history.jsonl").stat().st_mode & 0o777 == 0o600


def test_the_commands_of_a_conversation(server, environ, tmp_path, kit):
    server.script(answer("one", usage={"prompt_tokens": 5, "completion_tokens": 2}))
    saved = tmp_path / "saved"
    lines = ["/retry", "/system Be brief.", "Hi", "/model big", "/retry", f"/save {saved}.json", f"/save {saved}.md",
             "/usage", "/save /nowhere/at/all", "/help"]  # fmt: skip
    done = kit.run_cli(environ, "chat", "--thinking", "on", "--effort", "high", stdin="\n".join(lines) + "\n")
    assert (done.returncode, done.stdout) == (0, "one\none\n")
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    assert [request.json["messages"] for request in server.requests] == [[system, user]] * 2
    assert [request.json.get("model") for request in server.requests] == [None, "big"]
    server.requests[0].assert_json(thinking={"type": "enabled"}, reasoning_effort="high")
    conversation = [system, user, {"role": "assistant", "content": "one"}]
    assert json.loads((tmp_path / "saved.json").read_text()) == conversation
    assert (tmp_path / "saved.md").read_text() == "## system\n\nBe brief.\n\n## user\n\nHi\n\n## assistant\n\none\n"
    tokens = "2 answers: 10 prompt tokens, 4 completion tokens"
    notes = ["(nothing was asked yet)", "(instructions set)", "(the model is big)", "(3 messages saved to ", tokens]
    for note in [*notes, "(not saved: ", "/system  TEXT sets"]:
        assert note in done.stderr
    used = kit.run_cli(environ, "usage", "--json").stdout.splitlines()
    assert [(row["model"], row["answers"], row["prompt_tokens"]) for row in map(json.loads, used)] == [("m", 2, 10)]
    assert tokens in kit.run_cli(environ, "usage").stdout


def test_chat_in_json_is_a_line_for_each_answer(server, environ, kit):
    server.script(answer("Hello"))
    lines = kit.run_cli(environ, "chat", "--json", stdin="Hi\nAgain\n").stdout.splitlines()
    assert [json.loads(line)["choices"][0]["message"]["content"] for line in lines] == ["Hello"] * 2
    assert len(server.requests[1].json["messages"]) == 3


def test_the_balance(server, environ, kit):
    info = {"currency": "CNY", "total_balance": "110.10", "granted_balance": "10.10", "topped_up_balance": "100"}
    server.script(reply({"is_available": True, "balance_infos": [info]}))
    assert kit.run_cli(environ, "balance").stdout == "110.10 CNY (10.10 granted, 100 topped up)\n"
    assert json.loads(kit.run_cli(environ, "balance", "--json").stdout)["is_available"] is True


@pytest.mark.parametrize(
    ("typed", "offered"),
    [(["ch"], ["chat"]), (["chat", "--sy"], ["--system"]), (["completion", ""], ["bash", "zsh", "fish", "--help"])],
)
def test_bash_completes_commands_and_flags(environ, typed, offered, kit):
    script = kit.run_cli(environ, "completion", "bash").stdout
    words = " ".join(f"'{word}'" for word in ["deepseek", *typed])
    ask = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _deepseek; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


def test_the_scripts_of_other_shells_name_every_command(environ, kit):
    for shell in ("zsh", "fish"):
        script = kit.run_cli(environ, "completion", shell).stdout
        assert all(name in script for name in ("generate", "chat", "models", "balance", "usage", "completion"))
    assert "-l system -d " in script
