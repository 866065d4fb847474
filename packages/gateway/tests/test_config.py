"""The file, the variables, the flags: which wins, and how every mistake is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.cli import main
from deepseek_gateway.config.sources import CONFIG_NAME
from deepseek_gateway.config.toml_lines import TomlLines
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.settings import LIVE, ConfigSource, Settings, load_settings

SECRET = "hunter2-hunter2"


@pytest.fixture
def file(state_dir: Path) -> Path:
    """Where a configuration is found by itself."""
    state_dir.mkdir()
    return state_dir / CONFIG_NAME


def write(file: Path, text: str, mode: int = 0o600) -> None:
    file.write_text(text)
    file.chmod(mode)


def faults(state_dir: Path, config: Path | None = None) -> list[str]:
    return list(ConfigSource(config, {"state_dir": state_dir}).read().faults)


def test_a_flag_overrides_a_variable_and_a_variable_the_file(state_dir: Path, file: Path, monkeypatch) -> None:
    write(file, 'host = "a"\nport = 1\nmax_requests = 7\n')
    monkeypatch.setenv("GATEWAY_HOST", "b")
    monkeypatch.setenv("GATEWAY_PORT", "2")
    loaded = ConfigSource(None, {"state_dir": state_dir, "port": "3"}).read()
    assert loaded.settings is not None
    assert (loaded.settings.host, loaded.settings.port, loaded.settings.max_requests) == ("b", 3, 7)
    origins = loaded.sources.origins
    assert (origins["host"], origins["port"], origins["max_requests"]) == ("GATEWAY_HOST", "--port", f"{file}:3")
    assert "slice_tokens" not in origins


def test_the_file_is_the_flags_else_the_variables_else_the_state_directorys(
    state_dir: Path, file: Path, monkeypatch, tmp_path: Path
) -> None:
    write(file, "port = 1\n")
    write(tmp_path / "two.toml", "port = 2\n")
    write(tmp_path / "three.toml", "port = 3\n")
    assert load_settings(state_dir=state_dir).port == 1
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "two.toml"))
    assert load_settings(state_dir=state_dir).port == 2
    assert load_settings(tmp_path / "three.toml", state_dir=state_dir).port == 3
    assert "nowhere.toml cannot be read" in faults(state_dir, tmp_path / "nowhere.toml")[0]


def test_every_fault_is_told_at_once_with_its_place(state_dir: Path, file: Path, monkeypatch) -> None:
    monkeypatch.setenv("GATEWAY_MAX_BODY_BYTE", "5")
    monkeypatch.setenv("GATEWAY_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("GATEWAY_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GATEWAY_PORT_8080_TCP_ADDR", "10.0.0.1")
    write(
        file,
        'max_request = 5\n\n[[upstreams]]\nname = "a"\nurl = "http://h:1"\nweigth = 2\n\n'
        '[[upstreams]]\nurl = "ftp://x"\ntls.ca_file = "/nope"\n\n[[models]]\nname = "m"\n'
        '[[models.targets]]\nupstream = "a"\n[[models.targets]]\ntag = "x"\ntear = 1\n',
    )
    assert set(faults(state_dir)) == {
        "GATEWAY_MAX_BODY_BYTE names no setting: did you mean GATEWAY_MAX_BODY_BYTES?",
        "GATEWAY_PORT='tcp://10.0.0.1:80': Input should be a valid integer, unable to parse string as an integer"
        " (Kubernetes sets it for a service named `gateway`: set enableServiceLinks: false)",
        f"{file}:10: upstreams[1].tls.ca_file='/nope': there is no such file",
        f"{file}:18: models[0].targets[1].tear names no setting: did you mean tier?",
        f"{file}:1: max_request names no setting: did you mean max_requests?",
        f"{file}:6: upstreams[0].weigth names no setting: did you mean weight?",
        f"{file}:9: upstreams[1].url='ftp://x': 'ftp://x' is no upstream: write http://host:port, https://host/v1"
        " or unix:///path.sock",
    }
    with pytest.raises(ConfigurationError, match="max_requests"):
        load_settings(state_dir=state_dir)


def test_a_file_that_is_no_toml_is_told_with_its_line(state_dir: Path, file: Path) -> None:
    write(file, "port = 1\nhost =\n")
    assert faults(state_dir) == [f"{file}: this is no TOML: Invalid value (at line 2, column 7)"]


@pytest.mark.parametrize("reference", ["env:THE_SECRET", "file"])
def test_secrets_are_taken_by_reference(state_dir: Path, file: Path, monkeypatch, tmp_path, reference: str) -> None:
    monkeypatch.setenv("THE_SECRET", SECRET)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    reference = f"file:{tmp_path}/secret" if reference == "file" else reference
    write(file, f'upstream_key = "{reference}"\n[[upstreams]]\nurl = "http://h:1"\nkey = "{reference}"\n', 0o644)
    settings = load_settings(state_dir=state_dir)
    for key in (settings.upstream_key, settings.upstreams[0].key):
        assert key is not None
        assert key.get_secret_value() == SECRET
    assert SECRET not in repr(settings)


def test_a_reference_to_nothing_and_a_secret_that_others_can_read_are_faults(state_dir: Path, file: Path) -> None:
    write(file, f'key_pepper = "env:NOT_SET"\n[[upstreams]]\nurl = "http://h:1"\nkey = "{SECRET}"\n', 0o644)
    exposed, missing = faults(state_dir)
    assert exposed.startswith(f"{file}:4: upstreams[0].key stands in a file that others can read")
    assert missing == f"{file}:1: key_pepper=…: the variable NOT_SET is not set"
    write(file, f'[[upstreams]]\nurl = "http://h:1"\nkey = "{SECRET}"\n', 0o600)
    assert faults(state_dir) == []


@pytest.mark.parametrize(
    "text",
    [
        f'upstream_keys = "{SECRET}"\n',
        f'upstreams = "http://user:{SECRET}@h"\n',
        f'[[upstreams]]\nurl = "http://user:{SECRET}@h"\n',
        f'[[upstreams]]\nurl = "http://h"\nkeys = "{SECRET}"\n',
        f'upstream_key = ["{SECRET}"]\n',
    ],
)
def test_no_fault_and_no_check_shows_a_secret(state_dir: Path, file: Path, capsys, text: str) -> None:
    write(file, text)
    assert main(["check", "--state", str(state_dir)]) == 1
    out, error = capsys.readouterr()
    assert "fault: " in out
    assert SECRET not in out + error


def test_lists_are_written_with_commas_and_tables_as_json_in_variables(state_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("GATEWAY_UPSTREAMS", "http://a:1, unix:///b.sock")
    assert [at.name for at in load_settings(state_dir=state_dir).upstreams] == ["http://a:1", "unix:///b.sock"]
    monkeypatch.setenv("GATEWAY_UPSTREAMS", '[{"name": "a", "url": "http://a:1", "weight": 2}]')
    (only,) = load_settings(state_dir=state_dir).upstreams
    assert (only.name, only.weight) == ("a", 2)
    monkeypatch.setenv("GATEWAY_UPSTREAMS", '[{"name": "a", "weight": -1}]')
    assert sorted(faults(state_dir)) == [
        "GATEWAY_UPSTREAMS[0].url is missing",
        "GATEWAY_UPSTREAMS[0].weight=-1: Input should be greater than 0",
    ]
    monkeypatch.setenv("GATEWAY_UPSTREAMS", "[{")
    assert faults(state_dir)[0].startswith("GATEWAY_UPSTREAMS: this is no JSON")


def test_a_state_directory_cannot_move_itself(state_dir: Path, file: Path) -> None:
    write(file, 'state_dir = "/elsewhere"\n')
    assert "give the file by --config" in faults(state_dir)[0]


def test_check_explains_the_file(state_dir: Path, file: Path, capsys) -> None:
    write(file, 'port = 9\n[[upstreams]]\nname = "gpu"\nurl = "http://127.0.0.1:9"\nweight = 2.5\ntags = ["eu"]\n')
    assert main(["check", "--state", str(state_dir)]) == 1
    shown = capsys.readouterr().out
    assert f"file: {file}" in shown
    assert f"{file}:1" in shown
    assert " ".join(shown.split()).count("gpu http://127.0.0.1:9 engine 2.5 - - its own eu") == 1
    assert "fault: the engine at http://127.0.0.1:9 cannot be reached" in shown


def test_check_tells_what_only_shows_as_a_whole_and_which_engines_fail_in_one_go(
    state_dir: Path, file: Path, capsys
) -> None:
    ours = '[[upstreams]]\nname = "gpu"\nurl = "http://127.0.0.1:9"\n'
    cloud = '[[upstreams]]\nurl = "http://127.0.0.1:9/v1"\nkind = "deepseek-cloud"\n'
    write(file, f'{ours}{cloud}[[models]]\nname = "chat"\ntargets = [{{upstream = "gqu"}}]\n')
    assert main(["check", "--state", str(state_dir)]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault: ")]
    assert "fault: upstream http://127.0.0.1:9/v1: DeepSeek's cloud needs a `key`" in told
    assert "fault: model chat: there is no upstream 'gqu': did you mean gpu?" in told
    assert sum("cannot be reached" in line for line in told) == 2
    assert any("deepseek-gateway migrate" in line for line in told)


def test_check_warns_of_names_for_callers_that_cost_nothing(state_dir: Path, file: Path, capsys) -> None:
    prices = file.with_name("prices.toml")
    row = 'model = "fake-*"\ninput_cache_hit = 0\ninput_cache_miss = 0\noutput = 1\n'
    prices.write_text(f'currency = "USD"\n[[price]]\n{row}')
    models = [f'[[models]]\nname = "{name}"\ntargets = [{{upstream = "a"}}]\n' for name in ("chat", "fake-chat")]
    write(file, f'prices = "{prices}"\n[[upstreams]]\nname = "a"\nurl = "http://127.0.0.1:9"\n{"".join(models)}')
    main(["check", "--state", str(state_dir)])
    shown = capsys.readouterr().out
    assert "warning: the model chat has no price" in shown
    assert "the model fake-chat has no price" not in shown


@pytest.mark.parametrize(
    ("more", "is_warned"),
    [("", True), ('redis_url = "redis://127.0.0.1:1/0"\n', False), ("allow_local_limits = true\n", False)],
)
def test_check_warns_of_limits_that_gateways_of_one_store_do_not_share(
    state_dir: Path, file: Path, monkeypatch, capsys, more: str, is_warned: bool
) -> None:
    monkeypatch.setattr("deepseek_gateway.storage.postgres.WAIT_S", 0.2)  # nobody is there, and nobody will come
    write(file, f'store_url = "postgresql://nobody@127.0.0.1:1/none"\n{more}')
    assert main(["check", "--state", str(state_dir)]) == 1
    shown = capsys.readouterr().out
    assert ("warning: GATEWAY_REDIS_URL is not set" in shown) == is_warned


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 3)), max_size=12))
def test_each_key_of_an_array_of_tables_has_its_line(tables: list[tuple[str, int]]) -> None:
    lines: list[str] = ["top = 1"]
    expected: dict[tuple[str | int, ...], int] = {("top",): 1}
    counts = {"a": 0, "b": 0}
    for name, keys in tables:
        lines.append(f"[[{name}]]  # one more")
        for key in range(keys):
            lines.append(f"k{key} = {{ x = 1 }}")
            expected[name, counts[name], f"k{key}", "x"] = len(lines)
        counts[name] += 1
    found = TomlLines("\n".join(lines))
    assert {path: found.find(path) for path in expected} == expected
    assert found.find(("nowhere",)) is None


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_what_a_reload_changes_are_settings() -> None:
    assert set(Settings.model_fields) >= LIVE
