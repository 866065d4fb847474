"""What several test modules share."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():  # read where a kernel is defined, so before any is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from deepseek_engine.kernels.cpu.library import load


@pytest.fixture(params=["vectors", "tiles"])
def either_unit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test of the CPU kernels with the vector instructions, and with the tile unit where there is one."""
    library = load()
    assert library is not None
    wanted = request.param == "tiles"
    if library.set_amx(wanted) != wanted:
        pytest.skip("this machine's processor has no AMX")
    yield
    library.set_amx(True)
