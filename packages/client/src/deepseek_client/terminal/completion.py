"""Completion scripts for shells, made from the program's own parser, so that they never lag behind it."""

import argparse
from collections.abc import Iterator, Mapping
from typing import cast

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
