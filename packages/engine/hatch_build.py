"""Build hook: compiles the CPU kernels into the package, where the machine and its compiler can.

The kernels are C with AVX-512 intrinsics, loaded through ctypes, so they need no header of Python or torch and one
build serves every version of both. A C compiler of the machine is used if it knows the instructions; otherwise pip
brings `ziglang`, a compiler that comes as a wheel. Where nothing can be built the wheel is plain Python, and the engine
computes with torch's operators.

`python hatch_build.py` compiles in place, for a checkout whose C files changed.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent / "src" / "deepseek_engine" / "kernels" / "cpu"
LIBRARY = FOLDER / "_native.so"
INSTRUCTIONS = [
    "-mavx2",
    "-mfma",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bf16",
    "-mavx512vnni",
]
FLAGS = ["-O3", "-std=gnu11", "-Wall", "-Wextra", "-Wno-psabi", "-fPIC", "-shared", *INSTRUCTIONS]
ZIG = ["-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17"]


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `_native.so` and the platform's tag to the wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build environment needs beside hatchling."""
        return ["ziglang>=0.15"] if is_supported() and not system_compiler() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Compile before the files are collected; a failure leaves a wheel without the library."""
        if self.target_name != "wheel" or not is_supported():
            return
        try:
            compile_library()
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the CPU kernels were not built, torch's operators serve instead: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
        build_data["artifacts"].append(str(LIBRARY.relative_to(Path(__file__).parent)))


def is_supported() -> bool:
    """Whether this is a platform that the kernels are written for; the processor is asked when they are loaded."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def system_compiler() -> list[str] | None:
    """The machine's C compiler, `$CC` first, if it knows the instructions."""
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            probe = [*words, *INSTRUCTIONS, "-include", "immintrin.h", "-x", "c", "-c", os.devnull, "-o", os.devnull]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:  # noqa: S603
                return words
    return None


def compile_library() -> None:
    """Compile to a file of its own first: a process that has the old library open keeps it."""
    compiler = system_compiler() or ([sys.executable, *ZIG] if find_spec("ziglang") else None)
    if compiler is None:
        raise FileNotFoundError("no C compiler for AVX-512 was found: install gcc 10 or newer, or ziglang")
    sources = sorted(str(source) for source in (FOLDER / "csrc").glob("*.c"))
    built = LIBRARY.with_suffix(f".{os.getpid()}.tmp")
    command = [*compiler, *FLAGS, "-o", str(built), *sources, "-lpthread", "-lm"]
    subprocess.run(command, check=True)  # noqa: S603
    built.replace(LIBRARY)


if __name__ == "__main__":
    compile_library()
    print(LIBRARY)  # noqa: T201
