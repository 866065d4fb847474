"""The commands, as processes."""

import csv
import io
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from deepseek_gateway.auth.keys import parse_key
from deepseek_gateway.cli import main
from deepseek_gateway.cli.common import parse_moment
from deepseek_gateway.testing.command import Command
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess, gateway_command, make_state


@pytest.fixture
def state(state_dir: Path) -> Path:
    make_state(state_dir)
    return state_dir


def test_serve_refuses_a_store_that_is_not_migrated_and_names_the_command(state_dir: Path) -> None:
    done = gateway_command("serve", "--state", state_dir, "--upstream", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "deepseek-gateway migrate" in done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_says_what_it_did(state_dir: Path, command: Command) -> None:
    status, out, _ = command("migrate", "--state", state_dir)
    assert (status, "applied 0001_keys_and_ledger" in out) == (0, True)
    assert (state_dir / "pepper").stat().st_mode & 0o777 == 0o600
    assert command("migrate", "--state", state_dir) == (0, f"{state_dir}/gateway.sqlite3 is up to date\n", "")


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("GATEWAY_PORT", "99999", "GATEWAY_PORT='99999'"),
        ("GATEWAY_UPSTREAMS", "ftp://x", "GATEWAY_UPSTREAMS='ftp://x'"),
        ("GATEWAY_KEY_CACHE_TTL_S", "60", "GATEWAY_KEY_CACHE_TTL_S='60'"),
    ],
)
def test_a_bad_setting_fails_by_its_variables_name(
    state: Path, monkeypatch, capsys, variable: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["serve", "--state", str(state)]) == 1
    assert fault in capsys.readouterr().err


def test_a_bad_flag_fails_by_its_name(state: Path, capsys) -> None:
    assert main(["serve", "--state", str(state), "--port", "many"]) == 1
    assert "--port='many'" in capsys.readouterr().err


def test_check_shows_settings_with_their_source_and_no_secrets(state: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GATEWAY_UPSTREAM_KEY", "very-secret")
    monkeypatch.setenv("GATEWAY_MAX_BODY_BYTES", "5000")
    monkeypatch.setenv("GATEWAY_TYPO", "1")
    assert main(["check", "--state", str(state), "--upstream", "http://127.0.0.1:9"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"max_body_bytes +5000 +GATEWAY_MAX_BODY_BYTES +largest request body", shown)
    assert "very-secret" not in shown
    assert "fault: GATEWAY_TYPO names no setting" in shown
    assert "fault: the engine at http://127.0.0.1:9 cannot be reached" in shown


def test_check_is_content_with_a_stack_that_works(state: Path, command: Command) -> None:
    with RunningProcess(FAKE_ENGINE) as engine:
        status, out, _ = command("check", "--state", state, "--upstream", engine.line("http"))
    assert (status, "no faults" in out) == (0, True)


def test_a_key_is_created_shown_once_and_listed_without_its_secret(state: Path, command: Command) -> None:
    created = command.json(
        "key", "create", "--state", state, "--name", "app", "--models", "a,b", "--rpm", "5", "--expires", "30d"
    )
    assert created["key"].split("_")[1] == created["id"]
    assert created["models"] == ["a", "b"]
    assert created["limits"]["requests_per_minute"] == 5
    assert created["expires"] == pytest.approx(time.time() + 30 * 86400, abs=60)
    _, listed, _ = command("key", "list", "--state", state)
    assert created["id"] in listed
    assert "app" in listed
    assert created["key"].split("_")[2] not in listed
    for content in state.rglob("*"):
        if content.is_file():
            assert created["key"].split("_")[2].encode() not in content.read_bytes()


def test_rotate_and_revoke_change_what_list_shows(state: Path, command: Command) -> None:
    created = command.json("key", "create", "--state", state, "--name", "app")
    rotated = command.json("key", "rotate", created["id"], "--state", state, "--grace", "1h")
    assert rotated["id"] == created["id"]
    assert rotated["key"] != created["key"]
    assert command("key", "revoke", created["id"], "--state", state)[0] == 0
    *_, listed = command.json("key", "list", "--state", state)
    assert (listed["id"], listed["state"]) == (created["id"], "revoked")
    status, _, error = command("key", "revoke", "nobody", "--state", state)
    assert (status, "nobody" in error) == (1, True)


def test_people_are_administered_by_name(state: Path, command: Command) -> None:
    here = ("--state", state)
    org = command.json("org", "create", "acme", *here)
    team = command.json("team", "create", "research", "--org", "acme", *here)
    user = command.json("user", "create", "ada", "--org", "acme", "--team", "research", *here)
    assert (user["org_id"], user["team_id"]) == (org["id"], team["id"])
    assert command("user", "rename", "ada", "ada l", "--org", "acme", *here)[0] == 0
    assert command.json("user", "move", "ada l", "none", "--org", "acme", *here)["team_id"] is None
    key = command.json("key", "create", "--name", "k", "--user", user["id"], "--tags", "a,b", *here)
    assert key["org_id"] == org["id"]
    assert [found["id"] for found in command.json("key", "list", "--org", "acme", "--tag", "b", *here)] == [key["id"]]
    assert command.json("org", "disable", "acme", *here)["disabled"] is not None
    assert command.json("key", "show", key["id"], *here)["owner_disabled"] == "org"
    assert command("org", "enable", "acme", *here)[1] == f"{org['id']} (acme): enabled\n"
    for arguments, says in (
        (("org", "delete", "acme"), "still has keys, users or teams"),
        (("team", "show", "research"), "names need their organisation"),
        (("org", "create", "acme"), "is taken by another organisation"),
        (("key", "create", "--name", "k", "--team", "nobody"), "there is no team"),
    ):
        status, _, error = command(*arguments, *here)
        assert (status, says in error) == (1, True), error
    assert command("key", "delete", key["id"], *here)[0] == 0
    assert command("user", "delete", user["id"], *here)[0] == 0
    shown = command("team", "list", *here)[1].splitlines()
    assert re.fullmatch(r"id +name +state +created +org", shown[0])
    assert shown[1].startswith(team["id"])


def test_a_key_is_changed_disabled_and_enabled(state: Path, command: Command) -> None:
    here = ("--state", state)
    flags = ("--restricted", "--cidrs", "10.0.0.0/8,192.0.2.7", "--rpm", "5", "--tpm", "9", "--scope", "admin-read")
    key = command.json("key", "create", "--name", "k", *flags, *here)
    assert (key["models"], key["cidrs"]) == ([], ["10.0.0.0/8", "192.0.2.7/32"])
    assert key["scopes"] == ["admin-read"]
    changes = ("--models", "a,b*", "--cidrs", "any", "--rpm", "none", "--expires", "30d", "--scope", "inference,admin")
    changed = command.json("key", "change", key["id"], *changes, *here)
    assert (changed["models"], changed["cidrs"], changed["name"]) == (["a", "b*"], None, "k")
    assert changed["scopes"] == ["admin-read", "admin-write", "inference"]
    assert changed["limits"] == {**key["limits"], "requests_per_minute": None}
    shown = command("key", "show", key["id"], *here)[1]
    assert re.search(r"^models +a, b\*$", shown, re.MULTILINE)
    assert re.search(r"^cidrs +any$", shown, re.MULTILINE)
    assert re.search(r"^limits +tokens_per_minute 9$", shown, re.MULTILINE)
    back = command.json("key", "change", key["id"], "--all-models", "--expires", "never", *here)
    assert (back["models"], back["expires"]) == (None, None)
    assert command.json("key", "disable", key["id"], *here)["state"] == "disabled"
    assert command.json("key", "list", "--in", "disabled", *here)[0]["id"] == key["id"]
    assert command("key", "enable", key["id"], *here)[1] == f"{key['id']} (k) is active\n"


def test_many_keys_go_into_a_file_that_only_its_owner_reads(state: Path, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "keys.csv"
    arguments = ("key", "create", "--name", "=batch", "--count", 600, "--csv", file, "--state", state)
    assert command.json(*arguments) == {"count": 600, "csv": str(file)}
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["name"] for row in (rows[0], rows[599])] == ["'=batch-1", "'=batch-600"]
    assert parse_key(rows[599]["key"]).public_id == rows[599]["id"]
    status, _, error = command(*arguments)
    assert (status, "is there already" in error) == (1, True)
    assert len(command.json("key", "list", "--state", state, "--limit", 601)) == 601
    printed = command("key", "create", "--name", "b", "--count", 3, "--state", state)[1].split()
    assert all(parse_key(text) is not None for text in printed)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31", 1801353600),
        ("2027-01-31T10:00", 1801353600 + 36000),
        ("2027-01-31T10:00+08:00", 1801353600 + 2 * 3600),
        ("2027-01-31T00:00Z", 1801353600),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text: str, moment: float) -> None:
    assert parse_moment(text) == moment


@pytest.mark.parametrize("arguments", [["--rpm", "0"], ["--expires", "soon"], ["--scope", "god"], []])
def test_wrong_arguments_are_explained(state: Path, capsys, arguments: list[str]) -> None:
    name = [] if not arguments else ["--name", "x"]
    with pytest.raises(SystemExit) as end:
        main(["key", "create", "--state", str(state), *name, *arguments])
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_another_pepper_is_noticed_at_the_start(state: Path, command: Command) -> None:
    (state / "pepper").write_text("x" * 64)
    status, _, error = command("serve", "--state", state, "--upstream", "http://127.0.0.1:9")
    assert (status, "pepper is not the one" in error) == (1, True)


def test_a_lost_pepper_is_not_replaced_by_another(state: Path, command: Command) -> None:
    (state / "pepper").unlink()
    for arguments in (["key", "list"], ["migrate"], ["key", "list"]):
        status, _, error = command(*arguments, "--state", state)
        assert (status, "restore it" in error) == (1, True)
    assert not (state / "pepper").exists()


def test_a_store_or_a_folder_that_cannot_be_used_is_named(state: Path, command: Command) -> None:
    (state / "gateway.sqlite3").write_bytes(b"no database " * 1000)
    long = state / ("x" * 300)  # no file system has such a name
    for where, part in (
        (state, "gateway.sqlite3 cannot be used: file is not a database"),
        (long, "cannot be used: File"),
    ):
        for arguments in (["key", "list"], ["migrate"]):
            status, _, error = command(*arguments, "--state", where)
            assert status == 1
            assert part in error
            assert str(where) in error


def test_two_gateways_cannot_share_a_state_directory(state: Path, command: Command) -> None:
    serve = ("serve", "--state", str(state), "--port", "0", "--upstream", "http://127.0.0.1:9")
    with RunningProcess([*GATEWAY, *serve]) as first:
        first.line("listening on")
        second = gateway_command(*serve)
        assert (second.returncode, "another gateway uses" in second.stderr) == (1, True)
        first.signal()
        assert first.wait() == 0


def test_usage_prints_totals_by_key_and_day(state: Path, command: Command) -> None:
    with RunningProcess(FAKE_ENGINE) as engine:
        serve = ("serve", "--state", str(state), "--port", "0", "--upstream", engine.line("http"))
        keys = [command.json("key", "create", "--state", state, "--name", name) for name in ("one", "two")]
        with RunningProcess([*GATEWAY, *serve]) as gateway:
            url = gateway.line("listening on").split()[-1]
            for key, times in zip(keys, (1, 2), strict=True):
                for _ in range(times):
                    headers = {"authorization": f"Bearer {key['key']}"}
                    answer = httpx.post(f"{url}/generate", json={"prompt": "a b c"}, headers=headers)
                    assert answer.status_code == 200
            gateway.signal()
            assert gateway.wait() == 0
    shown = command("usage", "--state", state)[1].splitlines()
    assert re.fullmatch(r"day +key +name +requests +failed +prompt +cached +completion +total +cost", shown[0])
    assert re.fullmatch(r"total +3 +0 +9 +0 +24 +33 +0\.00", shown[-1])
    totals = command.json("usage", "--state", state, "--key", keys[1]["id"])
    assert [(total["requests"], total["total_tokens"]) for total in totals] == [(2, 22)]
    assert command.json("usage", "--state", state, "--until", "2020-01-01") == []
    wanted = ("--by", "served_model,route,status", "--to", "2200-01-01", "--user", "")
    (total,) = command.json("usage", "--state", state, *wanted)
    assert (total["served_model"], total["route"], total["status"]) == ("fake-model", "/v1/generate", "finished")
    table = command("usage", "--state", state, "--by", "key", "--order", "requests", "--format", "csv", "--limit", 1)[1]
    (line,) = csv.DictReader(io.StringIO(table))
    assert (line["key"], line["key_name"], line["requests"], line["cost_usd"]) == (keys[1]["id"], "two", "2", "0.00")
    assert re.match("[12] hours have usage", command("usage", "rebuild", "--state", state)[1])
    assert command.json("usage", "--state", state, "--by", "status")[0]["requests"] == 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--by", "colour"), "'colour' is none of: hour, day, key"),
        (("--from", "Monday"), "'Monday' is no day"),
        (("--tz", "Mars"), "'Mars' is no time zone"),
        (("--format", "xml"), "choose from"),
        (("--order", "size"), "choose from"),
    ],
)
def test_a_wrong_question_about_usage_is_wrong_usage(
    state: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str], says: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["usage", "--state", str(state), *flags])
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_rows_that_budgets_need_are_not_pruned(state: Path, command: Command) -> None:
    for flags, says in ((("--before", "2200-01-01"), "budgets need them"), ((), "needs --before")):
        status, _, error = command("usage", "prune", "--state", state, *flags)
        assert (status, says in error) == (1, True)
    assert "0 rows" in command("usage", "prune", "--state", state, "--before", "2020-01-01")[1]


def test_the_store_holds_no_prompt_and_no_answer(state: Path, command: Command) -> None:
    with RunningProcess(FAKE_ENGINE) as engine:
        key = command.json("key", "create", "--state", state, "--name", "app")["key"]
        serve = ("serve", "--state", str(state), "--port", "0", "--upstream", engine.line("http"))
        with RunningProcess([*GATEWAY, *serve]) as gateway:
            url = gateway.line("listening on").split()[-1]
            body = {"prompt": "unmistakable", "stream": True}
            httpx.post(f"{url}/generate", json=body, headers={"authorization": f"Bearer {key}"})
            gateway.signal()
            gateway.wait()
    for path in state.rglob("*"):
        if path.is_file():
            assert b"unmistakable" not in path.read_bytes()
    (total,) = command.json("usage", "--state", state)
    assert total["requests"] == 1


def test_serving_loads_nothing_that_it_does_not_use() -> None:
    heavy = {"psycopg", "redis", "argon2", "cryptography", "opentelemetry", "jinja2", "anthropic", "openai", "torch"}
    heavy |= {"aiohttp", "httpx"}
    code = f"import sys, deepseek_gateway.cli.serve; print({heavy!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_command_loads_only_its_own_module() -> None:
    code = "import sys; from deepseek_gateway import cli; sys.argv[1:] = ['usage', '--help']\n"
    code += "try: cli.main()\nexcept SystemExit: print('deepseek_gateway.upstream.client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
