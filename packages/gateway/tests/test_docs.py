"""The README says what is there."""

import re
from pathlib import Path

import pytest

from deepseek_gateway.cli import main
from deepseek_gateway.settings import Settings

PACKAGE = Path(__file__).parents[1]
README = (PACKAGE / "README.md").read_text()
PAGES = sorted((PACKAGE.parents[1] / "docs").glob("gateway/*.md"))
COMMAND = re.compile(r"^(?:\w+=\S+ )?deepseek-gateway ([a-z]+) ?(.*)$", re.MULTILINE)


def test_every_setting_is_documented_with_its_meaning() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", README, flags=re.MULTILINE))
    assert documented == {name: field.description for name, field in Settings.model_fields.items()}


def test_every_command_and_flag_of_the_docs_exists(capsys) -> None:
    commands = {found for page in (README, *(page.read_text() for page in PAGES)) for found in COMMAND.findall(page)}
    assert len(commands) >= 25
    for name, rest in sorted(commands):
        known = help_of(capsys, name)
        if "ACTION ..." in known:
            known = help_of(capsys, name, rest.split()[0])
        for flag in re.findall(r"(?<!\S)--[a-z][a-z-]+", rest.split("#")[0].partition(" -- ")[0].partition("|")[0]):
            assert flag in known, f"{name} {rest}: there is no {flag}"


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    return capsys.readouterr().out
