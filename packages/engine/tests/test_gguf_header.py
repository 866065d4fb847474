from pathlib import Path

import gguf
import numpy as np
import pytest

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.metadata import read_gguf_metadata


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("n.u32", 7)
    writer.add_int64("n.i64", -(2**40))
    writer.add_float32("n.f32", 0.5)
    writer.add_bool("n.bool", True)
    writer.add_string("s", "naïve 世界")
    writer.add_array("a.strings", ["a", "", "世"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.bools", [True, False])
    writer.add_tensor("t", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_kind_of_value_is_read_as_it_was_written(small_file: Path):
    assert read_gguf_metadata(small_file) == {
        "general.architecture": "llama",
        "n.u32": 7,
        "n.i64": -(2**40),
        "n.f32": 0.5,
        "n.bool": True,
        "s": "naïve 世界",
        "a.strings": ["a", "", "世"],
        "a.ints": [1, -2, 3],
        "a.bools": [True, False],
    }


def test_a_header_cut_anywhere_is_a_load_error(small_file: Path, tmp_path: Path):
    whole = small_file.read_bytes()
    header_end = whole.index(b"a.bools") + len(b"a.bools") + 4 + 4 + 8 + 2
    cut = tmp_path / "cut.gguf"
    for length in range(header_end):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelLoadError):
            read_gguf_metadata(cut)


def test_counts_that_exceed_the_file_are_refused_before_memory_is_taken(tmp_path: Path):
    path = tmp_path / "bomb.gguf"
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    key = (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little")
    for kind in (4, 8, 9):
        path.write_bytes(head + key + kind.to_bytes(4, "little") + (2**60).to_bytes(8, "little"))
        with pytest.raises(ModelLoadError):
            read_gguf_metadata(path)
