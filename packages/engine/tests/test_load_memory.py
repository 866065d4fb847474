"""Loading takes the model and little more of the host's memory, however many shards there are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint

NUM_SHARDS = 2
SMALL = TinyModel(hidden_size=512, intermediate_size=1408, num_attention_heads=8, num_key_value_heads=8, head_dim=64)
LARGE = TinyModel(
    hidden_size=512, intermediate_size=1408, num_hidden_layers=16, num_attention_heads=8, num_key_value_heads=8,
    head_dim=64,
)  # fmt: skip

# The high-water mark counts mapped pages of files too. A model with the same layers is loaded first, for what the first
# use of everything takes (libraries, threads); then the mark is set back to what the process has.
PROGRAM = """
import sys
from pathlib import Path
from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import build_runner

def status(field):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024

def load(folder):
    return build_runner(EngineConfig(model=folder, dtype="bfloat16", quantization=sys.argv[3] or None,
                                     num_kv_blocks=8, max_model_len=64, num_threads=2))

load(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
runner = load(sys.argv[2])
print(status("VmHWM") - before, runner.info.weight_bytes)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small checkpoint, and one of 2 shards of 100 MB."""
    root = tmp_path_factory.mktemp("memory")
    large = write_tiny_checkpoint(root / "large", LARGE)
    tensors = load_file(large / "model.safetensors")
    weight_map = {name: f"{index * NUM_SHARDS // len(tensors)}.safetensors" for index, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, large / file)
    (large / "model.safetensors").unlink()
    (large / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return write_tiny_checkpoint(root / "small", SMALL), large


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("quantization", ["", "int8"])
def test_the_peak_is_the_model_and_its_largest_shard(folders: tuple[Path, Path], quantization: str):
    small, large = folders
    sizes = [path.stat().st_size for path in large.glob("*.safetensors")]
    command = [sys.executable, "-c", PROGRAM, str(small), str(large), quantization]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, model = map(int, result.stdout.split())
    assert len(sizes) == NUM_SHARDS
    assert model > 50e6
    assert sum(sizes) > 190e6
    assert peak < model + 1.2 * max(sizes), f"{peak / 1e6:.0f} MB for {model / 1e6:.0f} MB"
