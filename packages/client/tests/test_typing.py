"""Type checkers see the surface as it is meant: basedpyright and mypy, both strict, over two small files."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TYPED = Path(__file__).parent / "typed"
SOURCE = Path(__file__).parents[1] / "src"
WRONG = {
    number
    for number, line in enumerate((TYPED / "mistakes.py").read_text().splitlines(), 1)
    if line.endswith("# wrong")
}


def run(*command, cwd):
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=cwd)
    return done.stdout + done.stderr


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@needs("basedpyright")
def test_basedpyright_agrees(tmp_path):
    settings = {
        "include": [str(TYPED)],
        "extraPaths": [str(SOURCE)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings | {"reportUnusedExpression": "none"}))
    output = run(
        "basedpyright", "--outputjson", "--project", str(tmp_path), "--pythonpath", sys.executable, cwd=tmp_path
    )
    found = {(Path(fault["file"]).name, fault["range"]["start"]["line"] + 1) for fault in faults_of(output)}
    assert found == {("mistakes.py", number) for number in WRONG}, output


def faults_of(output):
    return json.loads(output)["generalDiagnostics"]


@needs("mypy")
def test_mypy_agrees(tmp_path):
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nmypy_path={SOURCE}\npython_version=3.11\n")
    files = [str(TYPED / "surface.py"), str(TYPED / "mistakes.py")]
    output = run("mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path), *files, cwd=tmp_path)
    found = {(Path(file).name, int(line)) for file, line in re.findall(r"^(\S+?):(\d+): error:", output, re.MULTILINE)}
    assert found == {("mistakes.py", number) for number in WRONG}, output
