"""The files of deploy/: what cannot run here is parsed, and checked against what it names."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepseek_gateway.settings import Settings
from deepseek_gateway.testing.stack import Stack

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"deepseek_gateway_\w+")


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
    assert final["USER"].isdigit()
    assert int(final["USER"]) > 0
    assert {"HEALTHCHECK", "ENTRYPOINT", "EXPOSE"} <= final.keys()
    for at, (word, rest) in enumerate(lines):
        if word == "COPY" and at < last:
            source = rest.split()[0]
            assert (ROOT / source).exists(), source
    program = json.loads(final["ENTRYPOINT"])[0]
    scripts = (ROOT / f"packages/{name}/pyproject.toml").read_text()
    assert f"{program} = " in scripts
    extras = re.findall(rf"packages/{name}\[([\w,]+)\]", text)[0].split(",")
    assert all(re.search(rf"^{extra} = \[", scripts, re.MULTILINE) for extra in extras), extras


def test_compose_services_wait_for_each_other_and_keep_their_data() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    services = compose["services"]
    assert services.keys() >= {"engine", "gateway", "postgres", "valkey", "prometheus", "grafana"}
    for name, service in services.items():
        assert ("build" in service) != ("image" in service), name
        for other in service.get("depends_on", ()):
            assert other in services
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        for network in service["networks"]:
            assert network in compose["networks"]
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:"), "nothing is open to the network by default"
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
            assert service["cap_drop"] == ["ALL"]
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


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_units_are_valid_but_for_programs_that_are_not_installed_here() -> None:
    units = sorted((DEPLOY / "systemd").glob("*.service"))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    faults = [line for line in done.stderr.splitlines() if re.match(r"deepseek|/.*deepseek", line)]
    assert [line for line in faults if "is not executable" not in line] == []


def test_units_run_as_users_without_rights() -> None:
    for path in (DEPLOY / "systemd").glob("*.service"):
        text = path.read_text()
        for wanted in ("User=deepseek", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=\n"):
            assert wanted in text, (path.name, wanted)
