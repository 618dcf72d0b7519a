"""What is deployed beside the program: units, the installer, Prometheus's rules, Grafana's dashboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import metrics
from config import Settings
from metrics import METRICS, Kind
from setting_sources import SECRETS
from tests.support import ROOT, is_needed

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
NAME = re.compile(r"\b(sluice_[a-z_]+|process_[a-z_]+)\b")
# Where it is needed the tests fail without it.
WITHOUT_SYSTEMD = not shutil.which("systemd-analyze") and not is_needed("systemd")
WITHOUT_PROMTOOL = not shutil.which("promtool") and not is_needed("promtool")
OF_THE_PACKAGE = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def unit(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The sections of a unit; a name may stand in one more than once."""
    found: dict[str, list[tuple[str, str]]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(section, []).append((name, value))
    return found


# Metrics


def known() -> set[str]:
    names = {metric.shown for metric in METRICS} | OF_THE_PACKAGE
    for metric in METRICS:
        if metric.kind is Kind.HISTOGRAM:
            names |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def expressions(found: object) -> Iterator[str]:
    """Every PromQL expression in a dashboard, wherever it stands."""
    if isinstance(found, dict):
        for name, value in found.items():
            if name in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(found, list):
        for value in found:
            yield from expressions(value)


def test_alert_rules_use_metrics_that_exist_and_say_what_it_means() -> None:
    assert len(rules()) > 10
    for rule in rules():
        used = set(NAME.findall(rule["expr"]))
        assert used or rule["alert"] == "SluiceDown"
        assert used <= known(), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_the_dashboard_uses_metrics_that_exist_and_shows_those_of_lag() -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "sluice.json").read_text(encoding="utf-8"))
    used = {name for expression in expressions(board) for name in NAME.findall(expression)}
    assert used <= known()
    for metric in (metrics.LAG_ENTRIES, metrics.LAG_SECONDS, metrics.LAG_UNKNOWN, metrics.TRIMMED_UNREAD):
        assert metric.shown in used
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["targets"]


def test_grafana_is_told_where_its_dashboard_and_its_data_are() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "sluice.yaml").read_text())["providers"]
    assert (source["type"], provider["type"]) == ("prometheus", "file")
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert [job["job_name"] for job in scraped["scrape_configs"]] == ["sluice"]
    assert 'job="sluice"' in rules()[0]["expr"]


@pytest.mark.skipif(WITHOUT_PROMTOOL, reason="promtool (Debian's prometheus) is not installed")
def test_promtool_takes_the_rules_and_fires_those_of_its_test() -> None:
    for words in (("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")):
        done = subprocess.run(
            ["promtool", *words],  # noqa: S607
            cwd=DEPLOY / "prometheus",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_documentation_lists_every_metric_with_its_meaning() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `sluice_")]
    assert rows == [
        f"| `{metric.shown}` | {metric.kind.value} | {', '.join(metric.labels) or '–'} | {metric.help} |"
        for metric in METRICS
    ]


def test_the_version_that_is_told_is_that_of_the_project() -> None:
    assert f'\nversion = "{metrics.VERSION}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# systemd


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_what_there_is_and_lets_it_tell_how_it_does(path: Path) -> None:
    service = dict(unit(path)["Service"])
    python, script, *command = service["ExecStart"].split()
    assert (python, script) == ("/opt/sluice/.venv/bin/python", "/opt/sluice/main.py")
    assert command == [path.name.removeprefix("sluice-").partition(".")[0].rstrip("@")]
    assert service["Type"] == "notify"
    assert service["RestartPreventExitStatus"] == "2"
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert int(service["TimeoutStopSec"]) > defaults["shutdown_timeout_sec"]
    assert int(service["WatchdogSec"]) >= 10


def test_all_units_are_confined_alike() -> None:
    confined = [
        [
            pair
            for pair in unit(path)["Service"]
            if pair[0] not in ("ExecStart", "Environment", "EnvironmentFile")
        ]
        for path in UNITS
    ]
    assert len(confined) == 4
    assert all(one == confined[0] for one in confined)


@pytest.mark.skipif(WITHOUT_SYSTEMD, reason="systemd is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_little_exposure(path: Path) -> None:
    told = analyze("security", "--offline=yes", "--threshold=15", str(path))
    assert told.returncode == 0, told.stdout[-500:]
    assert "Overall exposure level" in told.stdout


@pytest.mark.skipif(WITHOUT_SYSTEMD, reason="systemd is not installed")
def test_systemd_takes_what_is_installed(tmp_path: Path) -> None:
    install(tmp_path)
    units = tmp_path / "etc/systemd/system"
    (units / "sluice-worker@.service").rename(units / "sluice-worker@worker-1.service")
    python = tmp_path / "opt/sluice/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/sh")
    for path in units.glob("sluice*"):
        if path.is_file():  # the folder stands for the root of the machine
            path.write_text(path.read_text().replace("/opt/", f"{tmp_path}/opt/"))
    told = analyze(
        "verify", "--man=no", *(str(path) for path in sorted(units.glob("sluice*.*")) if path.is_file())
    )
    ours = [line for line in told.stderr.splitlines() if "sluice" in line]
    assert (told.returncode, ours) == (0, []), told.stderr


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The installer


def install(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DEPLOY / "install.sh"), "--no-packages", *words],
        env={"DESTDIR": str(root), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below `root`: mode, and content or target."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            b""
            if path.is_dir()
            else str(path.readlink()).encode()
            if path.is_symlink()
            else path.read_bytes(),
        )
        for path in sorted(root.rglob("*"))
    }


def test_a_dry_run_writes_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    done = install(tmp_path / "machine", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "machine").exists()
    assert "sluice-worker@.service" in done.stdout


def test_installing_again_changes_nothing_and_keeps_settings(tmp_path: Path) -> None:
    assert install(tmp_path, "--workers", "2").returncode == 0
    settings = tmp_path / "etc/sluice/sluice.env"
    settings.write_text("BATCH_SIZE=77\n")
    (tmp_path / "opt/sluice/old_module.py").write_text("")
    before = tree(tmp_path)
    done = install(tmp_path, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "wrote" not in done.stdout
    del before["opt/sluice/old_module.py"]  # of an older version: it would be imported
    assert tree(tmp_path) == before
    assert (tmp_path / "opt/sluice/.env").readlink() == Path("/etc/sluice/sluice.env")
    assert {path.read_text() for path in (tmp_path / "etc/sluice").glob("sluice-worker@*.env")} == {
        "HEALTH_PORT=9471\n",
        "HEALTH_PORT=9472\n",
    }


def test_each_service_is_handed_the_secrets_that_it_may_need_and_no_others(tmp_path: Path) -> None:
    assert install(tmp_path).returncode == 0
    folder = tmp_path / "etc/sluice/credentials"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in SECRETS:
        (folder / name).write_text("x")
    assert install(tmp_path).returncode == 0
    handed = {}
    for drop_in in (tmp_path / "etc/systemd/system").glob("*.d/credentials.conf"):
        pairs = unit(drop_in)["Service"]
        names = [value.partition(":")[0] for key, value in pairs if key == "LoadCredential"]
        assert [value for key, value in pairs if key == "Environment"] == [
            f"{name.upper()}_FILE=%d/{name}" for name in names
        ]
        handed[drop_in.parent.name.partition(".")[0]] = set(names)
    assert set.union(*handed.values()) == set(SECRETS)
    assert "database_url" not in handed["sluice-bridge"]
    assert "dashboard_password" not in handed["sluice-query"]
    for name in SECRETS:
        (folder / name).unlink()
    assert install(tmp_path).returncode == 0
    assert not list((tmp_path / "etc/systemd/system").glob("*.d/credentials.conf"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--workers", "many"), "--workers is 'many'; it takes a number from 1 to 99"),
        (("--prefix", "relative"), "--prefix is 'relative'; it takes an absolute path"),
        (("--prefix", "/"), "--prefix is /; it takes a folder of its own"),
        (("--prefix", "/opt/../etc"), "--prefix is '/opt/../etc'; it takes a path without .."),
        (("--python", "/bin/false"), "/bin/false is missing or older than 3.11"),
    ],
)
def test_what_cannot_be_installed_is_refused_before_anything_is_written(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = install(tmp_path / "machine", *words)
    assert done.returncode == 1
    assert told in done.stderr
    assert not (tmp_path / "machine").exists()


def test_a_folder_with_something_of_others_in_it_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "srv/app/main.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("")
    before = tree(tmp_path)
    done = install(tmp_path, "--prefix", "/srv/app")
    assert done.returncode == 1
    assert "/srv/app is not empty, and nothing that this has installed" in done.stderr
    assert tree(tmp_path) == before


def test_a_python_that_no_service_can_see_is_refused(tmp_path: Path) -> None:
    """The units have ProtectHome=yes, and a virtual environment leads to the Python it was made with."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho /run/user/1000/python\n")
    python.chmod(0o755)
    done = subprocess.run(
        [str(DEPLOY / "install.sh"), "--python", str(python)],
        env={"DESTDIR": str(tmp_path / "machine"), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "is in /run/user/1000/python, which no service can see" in done.stderr
    assert not (tmp_path / "machine").exists()
    assert all(dict(unit(path)["Service"])["ProtectHome"] == "yes" for path in UNITS)


def test_services_can_read_what_a_root_with_a_narrow_umask_installs(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"umask 077; exec {DEPLOY / 'install.sh'} --no-packages"],  # noqa: S607
        env={"DESTDIR": str(tmp_path / "machine"), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    root = tmp_path / "machine"
    narrow = [
        path for path in root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o004 == 0
    ]
    assert [path.name for path in narrow] == ["credentials"]


def test_a_command_run_by_hand_has_the_secrets_of_the_services(tmp_path: Path) -> None:
    program, credentials = tmp_path / "opt/sluice", tmp_path / "etc/sluice/credentials"
    assert install(tmp_path).returncode == 0
    (credentials / "database_url").write_text("postgresql://sluice:secret@db/sluice\n")
    (credentials / "README.txt").write_text("")  # no name of a setting
    script = program / "sluice"
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("/opt/", f"{tmp_path}/opt/").replace("/etc/", f"{tmp_path}/etc/"))
    (program / ".venv/bin").mkdir(parents=True)
    (program / ".venv/bin/python").symlink_to(sys.executable)
    settings = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = run_script(script, "config", "--json", environment=settings)
    (address,) = (one for one in json.loads(shown.stdout) if one["name"] == "DATABASE_URL")
    assert (address["value"], address["origin"]) == ("postgresql://***@db/sluice", "DATABASE_URL_FILE")
    migrated = run_script(script, "migrate", "nonsense", environment=settings)
    assert migrated.returncode == 2
    assert "usage: ./migrate.sh COMMAND" in migrated.stdout + migrated.stderr
    shutil.rmtree(credentials)
    without = run_script(script, "config", environment=settings)
    assert (without.returncode, without.stdout) == (2, "")
    assert "run it with sudo" in without.stderr


def run_script(path: Path, *words: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(path), *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
