"""The README says what is there."""

import re
from pathlib import Path

import pytest

from deepseek_gateway.cli import main
from deepseek_gateway.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_every_setting_is_documented_with_its_meaning() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", README, flags=re.MULTILINE))
    assert documented == {name: field.description for name, field in Settings.model_fields.items()}


def test_every_command_and_flag_of_the_readme_exists(capsys) -> None:
    commands = re.findall(r"^deepseek-gateway ([a-z]+(?: (?:create|list|rotate|revoke))?)(.*)$", README, re.MULTILINE)
    assert len(commands) >= 10
    for words, rest in commands:
        with pytest.raises(SystemExit, match="0"):
            main([*words.split(), "--help"])
        known = capsys.readouterr().out
        for flag in re.findall(r"--[a-z][a-z-]+", rest.split("#")[0].partition(" -- ")[0]):
            assert flag in known, f"{words} has no {flag}"
