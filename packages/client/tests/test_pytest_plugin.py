"""The pytest plugin, as an installed distribution brings it to a program's own tests."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deepseek_client

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
HEAVY = ["httpx", "httpx2", "pydantic", "deepseek_client.client", "deepseek_client.core", "deepseek_client.testing"]
PROGRAM = """
import os
import sys

LOADED = {name for name in NAMES if name in sys.modules}


def test_the_plugin_has_loaded_nothing_heavy():
    assert "deepseek_client.pytest_plugin" in sys.modules
    assert LOADED == set()


def test_the_fixture_is_there(deepseek_server):
    from deepseek_client import DeepSeek
    from deepseek_client.testing import answer

    deepseek_server.script(answer("Hello"))
    with DeepSeek() as client:
        assert client.generate("Hi").text == "Hello"
    assert deepseek_server.url == os.environ["DEEPSEEK_BASE_URL"]
"""


@pytest.fixture
def run(tmp_path):
    """Runs pytest on the program's tests, where this distribution is installed, without the plugins of others."""
    (points,) = PROJECT["entry-points"].items()
    group, names = points
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    dist = tmp_path / "site" / "deepseek_client_installed-1.dist-info"
    dist.mkdir(parents=True)
    (dist / "entry_points.txt").write_text("\n".join(lines))
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: deepseek-client-installed\nVersion: 1\n")
    (tmp_path / "test_program.py").write_text(f"NAMES = {HEAVY}\n{PROGRAM}")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    source = str(Path(deepseek_client.__file__).parents[1])
    path = os.pathsep.join([str(tmp_path / "site"), source, os.environ.get("PYTHONPATH", "")])

    def call(*arguments):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        env = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return call


def test_an_installed_package_brings_its_fixture_and_loads_little(run):
    done = run("-p", "deepseek")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_without_the_plugin_a_conftest_imports_the_fixture(run, tmp_path):
    only = ("-k", "fixture")
    assert "fixture 'deepseek_server' not found" in run(*only).stdout
    (tmp_path / "conftest.py").write_text("from deepseek_client.testing import deepseek_server  # noqa: F401\n")
    done = run(*only)
    assert done.returncode == 0, done.stdout
