"""Write the table of `deepseek-server`'s flags in docs/engine.md from the program itself.

python tools/flags.py            # bring the table up to date
python tools/flags.py --check    # exit with 1 if it is not
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from deepseek_engine.server.command import build_parser
from deepseek_engine.server.settings import ServerSettings

PAGE = Path(__file__).parents[1] / "docs" / "engine.md"
BEGIN, END = "<!-- flags: written by tools/flags.py -->", "<!-- end of flags -->"
UNITS = {"_s": "seconds", "_bytes": "bytes", "_memory": "bytes", "_tokens": "tokens", "_len": "tokens"}


def flags_table() -> str:
    """A row for each field of ServerSettings, in their order."""
    spellings: dict[str, list[str]] = {}
    helps: dict[str, str] = {}
    for action in build_parser()._actions:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - argparse has no list of them
        spellings[action.dest] = list(action.option_strings)
        helps[action.dest] = (action.help or "").replace("%%", "%")
    lines = ["| flag | variable | default | unit | meaning |", "|---|---|---|---|---|"]
    for name, field in ServerSettings.model_fields.items():
        flags = ", ".join(f"`{flag}`" for flag in spellings.get(name, []))
        cells = (flags, f"`ENGINE_{name.upper()}`", _default(field), _unit(name), _meaning(field, helps.get(name, "")))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _meaning(field: FieldInfo, help_text: str) -> str:
    meaning = field.description or ""
    if help_text and not help_text.startswith(meaning):
        meaning = f"{meaning} (the flag: {help_text})"  # it turns the setting off
    choices = _choices(field.annotation)
    return f"{meaning}; {', '.join(f'`{choice}`' for choice in choices)}" if choices else meaning


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _default(field: FieldInfo) -> str:
    if field.default is None or field.default == ():
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _unit(name: str) -> str:
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def main() -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has no line {BEGIN}"
    assert end, f"{PAGE} has no line {END}"
    updated = f"{before}{BEGIN}\n\n{flags_table()}\n\n{END}{after}"
    if updated == text:
        return 0
    if options.check:
        there = text.splitlines()
        new = [line for line in updated.splitlines() if line not in there]
        gone = [line for line in there if line not in updated.splitlines()]
        print(f"{PAGE.name} is out of date: run `python tools/flags.py`. Lines to come and to go:", file=sys.stderr)
        print(*(f"+ {line}" for line in new), *(f"- {line}" for line in gone), sep="\n", file=sys.stderr)
        return 1
    PAGE.write_text(updated, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
