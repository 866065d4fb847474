"""`deepseek`: generate, chat, models, balance, usage and completion in the terminal.

Exit codes: 0 done, 1 the server or the connection failed, 2 wrong arguments or settings, 130 stopped with Ctrl-C.
Completion scripts for shells are made from the program's own parser, so that they never lag behind it.
"""

import argparse
import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from deepseek_client.client import DeepSeek
from deepseek_client.errors import AuthenticationError, ConfigurationError, DeepSeekError
from deepseek_client.request import USER_AGENT
from deepseek_client.terminal.chat_loop import HELP, ChatLoop
from deepseek_client.terminal.lines import PipedLines, TypedLines, acting_on_interrupts, keep_usage, read_usage
from deepseek_client.terminal.markdown import AnswerWriter, is_styled
from deepseek_client.types.chat import Generation


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.offline is not None:
        return arguments.offline(arguments)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # one broken byte, or one that the terminal lacks, ends nothing
    try:
        with (
            acting_on_interrupts(),
            DeepSeek(
                base_url=arguments.base_url,
                api_key=arguments.api_key,
                default_model=arguments.model,
                **_timeout(arguments),
            ) as client,
        ):
            return arguments.command(client, arguments)
    except ConfigurationError as error:
        return _fail(error, 2)
    except DeepSeekError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `deepseek generate … | head`: the reader has enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepseek", description="Talk to a DeepSeek server: our gateway, our engine, or any OpenAI-compatible one."
    )
    parser.add_argument("--version", action="version", version=USER_AGENT)
    commands = parser.add_subparsers(required=True, metavar="command")

    generate = commands.add_parser("generate", help="one prompt, one answer, streamed to the terminal")
    generate.add_argument("prompt", type=_text, help="the prompt; - reads it from standard input")
    generate.add_argument("--json", action="store_true", help="print the whole answer as one line of JSON")
    generate.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")
    _add_sampling(generate, max_tokens=512)
    generate.set_defaults(command=_generate)

    chat = commands.add_parser("chat", help="a conversation; /help says what can be typed; Ctrl-C stops an answer")
    chat.add_argument(
        "--system", type=_text, metavar="TEXT", help="instructions for the model, before the conversation"
    )
    chat.add_argument("--json", action="store_true", help="print each answer as one line of JSON, when it is whole")
    _add_sampling(chat, max_tokens=None)
    chat.add_argument("--thinking", choices=("on", "off"), help="whether the model thinks first (default: its own)")
    chat.add_argument("--effort", metavar="LEVEL", help="how much it thinks: low, medium, high, as the server knows")
    chat.set_defaults(command=_chat)

    models = commands.add_parser("models", help="the models that the key may use")
    models.add_argument("--json", action="store_true", help="print the server's list as one line of JSON")
    models.set_defaults(command=_models, model=None)

    balance = commands.add_parser("balance", help="what the account has left")
    balance.add_argument("--json", action="store_true", help="print the server's answer as one line of JSON")
    balance.set_defaults(command=_balance, model=None)

    for command in (generate, chat, models, balance):
        command.add_argument(
            "--base-url", type=_text, metavar="URL", help="the server (default: $DEEPSEEK_BASE_URL, then local)"
        )
        command.add_argument("--api-key", metavar="KEY", help="the key (default: $DEEPSEEK_API_KEY)")
        command.add_argument("--timeout", type=float, metavar="SECONDS", help="limit for a whole answer")
        command.set_defaults(offline=None)

    usage = commands.add_parser("usage", help="tokens that this program used, by day and model")
    usage.add_argument("--days", type=int, default=30, metavar="N", help="how far back (default: 30)")
    usage.add_argument("--json", action="store_true", help="print one line of JSON for each day and model")
    usage.set_defaults(offline=_usage)

    completion = commands.add_parser("completion", help="a script that completes commands and flags in a shell")
    completion.add_argument("shell", choices=SHELLS, help='bash and zsh: eval "$(deepseek completion bash)"')
    completion.set_defaults(offline=_completion)
    return parser


def _add_sampling(parser: argparse.ArgumentParser, *, max_tokens: int | None) -> None:
    parser.add_argument(
        "--model", type=_text, metavar="ID", help="the model (default: $DEEPSEEK_MODEL, then the server's)"
    )
    parser.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help="the longest answer, in tokens")
    parser.add_argument("--plain", action="store_true", help="no styles, also on a terminal (so does NO_COLOR)")
    parser.add_argument("--temperature", type=_number, metavar="T", help="0 is greedy; the server has its own default")


def _text(argument: str) -> str:
    """An argument without the lone surrogates that stand for bytes of another encoding: they cannot be sent."""
    return os.fsencode(argument).decode("utf-8", "replace")


def _number(argument: str) -> float:
    value = float(argument)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{argument} is not a finite number")
    return value


def _timeout(arguments: argparse.Namespace) -> dict[str, Any]:
    return {} if arguments.timeout is None else {"timeout": arguments.timeout}


def _generate(client: DeepSeek, arguments: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    sampling: dict[str, Any] = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    if arguments.json or arguments.no_stream:
        answer = client.generate(prompt, **sampling)
        print(answer.model_dump_json(exclude_unset=True) if arguments.json else answer.text)
        keep_usage(answer.model, answer.usage)
        return 0
    writer = AnswerWriter(sys.stdout, styled=is_styled(sys.stdout, plain=arguments.plain))
    with client.generate_stream(prompt, **sampling) as stream:
        try:
            for piece in stream:
                writer.content(piece)
        finally:
            writer.end()  # a line end after the last piece, so that the shell's prompt stands alone
        answer = stream.generation
    keep_usage(answer.model, answer.usage)
    _report(answer)
    return 0


def _report(answer: Generation) -> None:
    """Say on a terminal when the answer was cut by its token limit: it looks finished otherwise."""
    if answer.finish_reason == "length" and sys.stderr.isatty():
        print("[stopped at --max-tokens]", file=sys.stderr)


def _chat(client: DeepSeek, arguments: argparse.Namespace) -> int:
    params: dict[str, Any] = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    if arguments.thinking is not None:
        params["thinking"] = {"type": "enabled" if arguments.thinking == "on" else "disabled"}
    if arguments.effort is not None:
        params["reasoning_effort"] = arguments.effort
    is_typed = sys.stdin.isatty()
    loop = ChatLoop(
        client,
        params,
        system=arguments.system,
        lines=TypedLines(tuple(HELP)) if is_typed else PipedLines(sys.stdin),
        out=sys.stdout,
        notes=sys.stderr,
        styled=is_styled(sys.stdout, plain=arguments.plain),
        as_json=arguments.json,
        model=arguments.model,
    )
    return loop.run(greets=is_typed)


def _models(client: DeepSeek, arguments: argparse.Namespace) -> int:
    models = client.models.list()
    if arguments.json:
        print(models.model_dump_json(exclude_unset=True))
        return 0
    for model in models.data:
        print(model.id)
    return 0


def _balance(client: DeepSeek, arguments: argparse.Namespace) -> int:
    balance = client.user.balance()
    if arguments.json:
        print(balance.model_dump_json(exclude_unset=True))
        return 0
    for info in balance.balance_infos:
        parts = f"{info.granted_balance} granted, {info.topped_up_balance} topped up"
        print(f"{info.total_balance} {info.currency} ({parts})")
    if not balance.balance_infos:
        print("not prepaid")
    if not balance.is_available:
        print("not enough for a request", file=sys.stderr)
    return 0


def _usage(arguments: argparse.Namespace) -> int:
    for (day, model), totals in read_usage(time.time() - arguments.days * 86_400).items():
        row = {"day": day, "model": model, **asdict(totals)}
        print(json.dumps(row) if arguments.json else f"{day}  {model}  {totals}")
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    sys.stdout.write(completion_script(_parser(), arguments.shell))
    return 0


def _fail(error: DeepSeekError, code: int) -> int:
    hint = ""
    if isinstance(error, AuthenticationError):
        hint = " (set DEEPSEEK_API_KEY or pass --api-key)"
    print(f"deepseek: {' '.join(str(error).split())}{hint}", file=sys.stderr)
    return code


SHELLS = ("bash", "zsh", "fish")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for one of SHELLS: `eval "$(deepseek completion bash)"`, or `deepseek completion fish | source`."""
    commands = dict(_commands(parser))
    return _fish(commands) if shell == "fish" else _bash(commands, is_zsh=shell == "zsh")


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, tuple[str, argparse.ArgumentParser]]]:
    """Name, help and parser of each command."""
    for action in parser._actions:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  argparse shows them no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            helps = {choice.dest: choice.help or "" for choice in action._get_subactions()}  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            choices = cast("Mapping[str, argparse.ArgumentParser]", action.choices)
            for name, command in choices.items():
                yield name, (helps.get(name, ""), command)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [
        action
        for action in parser._actions  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if action.help != argparse.SUPPRESS
    ]


def _words(parser: argparse.ArgumentParser) -> str:
    """What may be typed after a command: its flags, and the values of a positional argument with few."""
    flags = [flag for action in _actions(parser) for flag in action.option_strings if flag.startswith("--")]
    values = [
        str(choice) for action in _actions(parser) if not action.option_strings for choice in (action.choices or ())
    ]
    return " ".join([*values, *flags])


def _bash(commands: dict[str, tuple[str, argparse.ArgumentParser]], *, is_zsh: bool) -> str:
    cases = "\n".join(f'    {name}) words="{_words(parser)}" ;;' for name, (_, parser) in commands.items())
    first = "autoload -U +X bashcompinit && bashcompinit\n" if is_zsh else ""
    return f"""{first}_deepseek() {{
  local words
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="{" ".join(commands)} --help --version" ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="{" ".join(commands)} --help --version"; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -F _deepseek deepseek
"""


def _fish(commands: dict[str, tuple[str, argparse.ArgumentParser]]) -> str:
    lines = ["complete -c deepseek -f"]
    for name, (text, parser) in commands.items():
        lines.append(f"complete -c deepseek -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
        under = f"complete -c deepseek -n '__fish_seen_subcommand_from {name}'"
        for action in _actions(parser):
            lines += [
                f"{under} -l {flag[2:]} -d {_quoted(action.help or '')}{'' if action.nargs == 0 else ' -r'}"
                for flag in action.option_strings
                if flag.startswith("--")
            ]
            if not action.option_strings and action.choices:
                lines.append(f"{under} -a '{' '.join(map(str, action.choices))}'")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


if __name__ == "__main__":
    sys.exit(main())
