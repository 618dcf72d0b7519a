"""The example for Kubernetes: what it names is there, and nothing runs with more rights than it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from setting_sources import SECRETS
from tests.support import ROOT
from tests.unit.test_containers import check_command, check_variables
from tests.unit.test_containers import commands as commands

FOLDER = ROOT / "deploy" / "kubernetes"


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_bytes()))


def documents() -> list[dict[str, Any]]:
    """All that kustomize applies."""
    names = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [
        one for name in names for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    ]


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in documents() if one["kind"] == kind}


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, pod and its one container, of everything that runs."""
    for one in documents():
        if one["kind"] in ("Deployment", "Job"):
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield container["name"], pod, container


def settings() -> dict[str, str]:
    (found,) = named("ConfigMap").values()
    return dict(found["data"])


def test_every_file_of_the_folder_is_used_or_says_why_not() -> None:
    used = read("kustomization.yaml")["resources"]
    files = {path.name for path in FOLDER.glob("*.yaml")}
    assert files - set(used) == {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert {name for name, _, _ in pods()} == {"migrate", "worker", "bridge"}


def test_commands_and_settings_are_those_of_the_program(commands: set[str]) -> None:
    check_variables(set(settings()))
    for _, _, container in pods():
        check_command(container["command"], commands)
        check_variables({one["name"] for one in container.get("env", [])})
        assert container["envFrom"] == [{"configMapRef": {"name": name}} for name in named("ConfigMap")]


@pytest.mark.parametrize("name", ["worker", "bridge"])
def test_probes_ask_where_the_process_listens(name: str) -> None:
    (container,) = (one for found, _, one in pods() if found == name)
    (port,) = container["ports"]
    assert str(port["containerPort"]) == settings()["HEALTH_PORT"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in paths.values()} == {port["name"]}
    # A probe of liveness that asks the servers would restart every worker in an outage.
    assert [probe["path"] for probe in paths.values()] == ["/livez", "/livez", "/readyz"]
    served = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "health").glob("*.py"))
    assert {probe["path"] for probe in paths.values() if f'"{probe["path"]}"' in served} == {
        "/livez",
        "/readyz",
    }


def test_nothing_runs_with_more_rights_than_it_needs() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for _, pod, container in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert (
            f"\nUSER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n"
            in image
        )
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_each_part_is_handed_the_secrets_whose_files_it_reads() -> None:
    for name, pod, container in pods():
        (secret,) = (one["secret"] for one in pod["volumes"] if "secret" in one)
        (mount,) = (one for one in container["volumeMounts"] if one["name"] == "secrets")
        handed = {f"{mount['mountPath']}/{item['path']}" for item in secret["items"]}
        assert {item["key"] for item in secret["items"]} <= set(SECRETS)
        variables = settings() | {one["name"]: one["value"] for one in container.get("env", [])}
        assert {value for key, value in variables.items() if key.endswith("_FILE") and value} == handed
        assert (f"{mount['mountPath']}/database_url" in handed) == (name != "bridge")


def test_workers_are_counted_by_a_metric_that_they_have() -> None:
    (scaler,) = named("HorizontalPodAutoscaler").values()
    workers = named("Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in workers["spec"]  # each `kubectl apply` would undo what the scaler has done
    (metric,) = scaler["spec"]["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"][
        "external"
    ]
    name = metric["external"]["metric"]["name"]
    assert rule["name"]["as"] == name
    assert rule["metricsQuery"].startswith(f"sum({name}{{")
    assert f"| `{name}` |" in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (budget,) = named("PodDisruptionBudget").values()
    labels = workers["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"] == workers["spec"]["selector"] == {"matchLabels": labels}
