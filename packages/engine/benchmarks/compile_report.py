"""What ptxas says of a Triton kernel for an H100, without one: registers, spills, memory, matrix instructions."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget


def report(fn: Any, signature: Mapping[str, str], constants: Mapping[str, Any], **options: Any) -> str:
    """Compile for compute capability 9.0 and summarise. Run without TRITON_INTERPRET.

    Args:
        fn: the `@triton.jit` function.
        signature: each argument's type: `*bf16`, `*i8`, `*fp32`, `i32`, `fp32`; pointers and numbers are taken to be
            multiples of 16, as torch's memory and most sizes are.
        constants: the constexpr arguments.
        options: num_warps, num_stages, launch_pdl.
    """
    types = {name: signature.get(name, "constexpr") for name in fn.arg_names}
    aligned = {(fn.arg_names.index(name),): [["tt.divisibility", 16]] for name, of in types.items() if of[0] in "*i"}
    source = triton.compiler.ASTSource(fn=fn, signature=types, constexprs=dict(constants), attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as work:
        cubin = Path(work) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _output(folder / "cuobjdump", "-res-usage", cubin)
        sass = _output(folder / "nvdisasm", "-c", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    assert found is not None, usage
    registers, stack, _ = found.groups()
    counts = {name: len(re.findall(rf"\b{name}\b", sass)) for name in ("HGMMA", "IGMMA", "HMMA", "IMMA", "LDL", "STL")}
    wide = len(re.findall(r"LDG\.E\.\S*128|LDGSTS\.E\.\S*128", sass))
    instructions = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return (
        f"{fn.__name__}: {registers} registers, stack {stack}, shared {compiled.metadata.shared}, "
        f"{wide} loads of 16 bytes, {instructions or 'no matrix instructions'}"
    )


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - Triton's own tools
