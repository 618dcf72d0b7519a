"""The image, and what runs it: every file, variable, port and command named there is the project's."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import main
from config import Settings
from setting_sources import SECRETS
from tests.support import ROOT
from tests.unit.test_layout import imported, modules

DEPLOY = ROOT / "deploy"
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
DEFAULTS = {name.upper(): field.default for name, field in Settings.model_fields.items()}
SERVES = {"query": "QUERY_PORT", "dashboard": "DASHBOARD_PORT"}


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The subcommands that main.py has."""
    with pytest.raises(SystemExit):
        main.main(["--help"])
    return set(re.findall(r"^    ([a-z][a-z-]+)\b", capsys.readouterr().out, re.MULTILINE))


def check_command(words: list[str], commands: set[str]) -> None:
    if words[0] == "./migrate.sh":
        assert (ROOT / "migrate.sh").stat().st_mode & 0o111
        assert words[1:] == ["upgrade"]
    else:
        assert words[:2] == ["python", "main.py"]
        assert set(words[2:3]) <= commands


def check_variables(names: set[str]) -> None:
    secrets = {f"{name.upper()}_FILE" for name in SECRETS}
    assert names <= set(DEFAULTS) | secrets, names - set(DEFAULTS) - secrets


# Dockerfile


@cache
def stages() -> list[list[tuple[str, str]]]:
    """Instruction and the rest of it, stage by stage; what stands before the first FROM is left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def copied() -> set[str]:
    """What of the project gets into the image, by the patterns of COPY."""
    lines = [rest.split() for stage in stages() for word, rest in stage if word == "COPY"]
    return {name for words in lines if not words[0].startswith("--") for name in words[:-1]}


def needed() -> set[str]:
    """The rooms that main.py loads, directly or by way of others."""
    arrows: dict[str, set[str]] = {}
    for room, path in modules():
        arrows.setdefault(room, set()).update(imported(path))
    found, left = set[str](), {"main"}
    while left:
        room = left.pop()
        found.add(room)
        left |= arrows[room] - found
    return found


def test_the_image_has_every_room_that_the_program_loads() -> None:
    folders = {room for room in needed() if (ROOT / room).is_dir()}
    assert len(folders) > 3
    assert folders | {"alembic", "*.py"} <= copied()
    assert "standalone" not in folders


def test_what_is_copied_is_there_and_let_through_by_dockerignore() -> None:
    assert IGNORED[0] == "*"
    for name in copied():
        assert list(ROOT.glob(name)), f"there is no {name}"
        assert f"!{name}" in IGNORED


def test_packages_come_by_hash_and_the_base_by_version() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG BASE=(.+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    for stage in stages():
        assert stage[0][1].startswith("${BASE}")
    for install in re.findall(r"pip install [^&\n\\]*", text):
        assert "--require-hashes" in install


def test_the_image_runs_without_root_and_sigterm_reaches_python(commands: set[str]) -> None:
    last = dict(stages()[-1])
    uid, _, gid = last["USER"].partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    check_command(yaml.safe_load(last["CMD"]), commands)  # the exec form is a list of JSON
    options, _, probe = last["HEALTHCHECK"].partition("CMD ")
    assert yaml.safe_load(probe) == ["python", "main.py", "health"]
    assert "health" in commands
    assert "--start-period" in options
    names = {
        pair.partition("=")[0] for word, rest in stages()[-1] if word == "ENV" for pair in rest.split()
    }
    check_variables(names - {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"})


# Compose


@cache
def compose() -> dict[str, Any]:
    """With its variables put in, as the example has them."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(VARIABLE.sub(lambda found: found[2] or "", text)))


@cache
def ours() -> dict[str, dict[str, Any]]:
    return {name: one for name, one in compose()["services"].items() if "build" in one}


def test_compose_starts_all_parts_with_commands_that_there_are(commands: set[str]) -> None:
    assert set(ours()) == {"migrate", "worker", "bridge", "query", "dashboard"}
    for name, service in ours().items():
        check_command(service["command"], commands)
        assert service["command"][-1] == ("upgrade" if name == "migrate" else name)
        check_variables(set(service["environment"]))
        assert service["read_only"] is True


def test_compose_hands_each_part_its_secrets_and_no_others() -> None:
    declared = compose()["secrets"]
    for name, service in compose()["services"].items():
        handed = set(service.get("secrets", []))
        assert handed <= set(declared)
        named = {
            value.removeprefix("/run/secrets/")
            for value in service.get("environment", {}).values()
            if str(value).startswith("/run/secrets/")
        }
        assert named <= handed
        if name in ours():
            assert named == handed
    bridge = set(compose()["services"]["bridge"]["secrets"])
    assert not bridge & {"database_url", "postgres_password", "query_token"}


def test_compose_drops_rights_and_listens_on_loopback_only() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert text.count(":${") == text.count('- "${BIND_ADDRESS:-127.0.0.1}:')
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), f"{name} is pinned by no version"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_compose_names_ports_at_which_the_parts_listen() -> None:
    for name, setting in SERVES.items():
        (port,) = ours()[name]["ports"]
        assert port.endswith(f":{DEFAULTS[setting]}")
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus" / "compose.yml").read_text())["scrape_configs"]
    (found,) = scraped["dns_sd_configs"]
    assert set(found["names"]) == set(ours()) - {"migrate"}
    for name in found["names"]:
        environment = ours()[name]["environment"]
        assert environment["HEALTH_PORT"] == str(found["port"])
        assert environment["HEALTH_HOST"] == "0.0.0.0"
    image = dict(re.findall(r"^ENV (HEALTH_PORT)=(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert image == {"HEALTH_PORT": str(found["port"])}


def test_compose_mounts_what_there_is_and_starts_in_order() -> None:
    services = compose()["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose()["volumes"]
            assert not source.startswith(".") or volume.endswith(":ro")
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other]
            else:
                assert (other, how["condition"]) == ("migrate", "service_completed_successfully")
    for name in ("worker", "query", "dashboard"):
        assert "migrate" in services[name]["depends_on"]


def test_no_container_fills_the_disk_with_its_log_and_ours_have_a_limit_of_memory() -> None:
    services = compose()["services"]
    assert {name for name, one in services.items() if one["logging"] != {"driver": "local"}} == set()
    for name in ("worker", "bridge", "query", "dashboard", "migrate", "redis"):
        assert services[name]["mem_limit"]


def test_what_the_readme_starts_has_a_bridge() -> None:
    """It is in a profile, which the example switches on."""
    (block,) = re.findall(r"```sh\n(deploy/secrets\.sh[^`]+)```", (ROOT / "README.md").read_text())
    assert block.index("cp deploy/compose.env.example deploy/.env") < block.index("docker compose")
    assert "\nCOMPOSE_PROFILES=bridge\n" in (DEPLOY / "compose.env.example").read_text()


def test_the_example_has_every_variable_of_compose_with_its_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    used = dict(VARIABLE.findall(text))
    lines = (DEPLOY / "compose.env.example").read_text(encoding="utf-8").splitlines()
    given = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert given.pop("COMPOSE_PROFILES") in {
        name for service in ours().values() for name in service.get("profiles", [])
    }
    assert given == used


def test_redis_keeps_what_is_unread_and_is_told_its_users() -> None:
    lines = (DEPLOY / "redis" / "redis.conf").read_text(encoding="utf-8").splitlines()
    set_to = dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    assert set_to["appendonly"] == "yes"
    assert set_to["maxmemory-policy"] == "noeviction"
    assert set_to["aclfile"] == "/run/secrets/redis_users"


def run_secrets(folder: Path) -> str:
    done = subprocess.run(
        [str(DEPLOY / "secrets.sh"), str(folder)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_secrets_are_made_once_for_all_that_compose_names(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    run_secrets(folder)
    assert folder.stat().st_mode & 0o777 == 0o700  # nobody else gets past it
    made = {path.name: path.read_text() for path in folder.iterdir()}
    wanted = {Path(one["file"]).name for one in compose()["secrets"].values()}
    assert wanted <= set(made)
    assert run_secrets(folder) == ""
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    password = made["redis_worker_password"].strip()
    assert len(password) == 48
    assert made["redis_worker_url"].strip() == f"redis://sluice-worker:{password}@redis:6379/0"
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^user sluice-worker on >PASSWORD .*$", page, re.MULTILINE)
    (by_hand,) = re.findall(r"A worker's account runs .* with `(\+[a-z +]+)` added", page)
    assert f"{line.replace('PASSWORD', password)} {by_hand}\n" in made["redis_users"]
    (more,) = re.findall(r"line of `verify` with `(\+\w+)` added", page)
    (dashboard,) = re.findall(r"^user sluice-dashboard on >.*$", made["redis_users"], re.MULTILINE)
    assert dashboard.endswith(f" {more}")


def test_rights_of_redis_users_that_have_changed_are_written_anew_with_the_same_passwords(
    tmp_path: Path,
) -> None:
    run_secrets(tmp_path)
    users = tmp_path / "redis_users"
    now = users.read_text()
    users.chmod(0o644)
    users.write_text(now.replace(" +xack", "") + "user somebody on nopass +ping\n")  # an older version's
    older = users.read_text()
    assert f"made {users}" in (said := run_secrets(tmp_path))
    assert "restart redis" in said
    assert users.read_text() == now
    assert (tmp_path / "redis_users.old").read_text() == older
    assert run_secrets(tmp_path) == ""


def test_no_users_are_made_where_the_page_has_no_line_for_them(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "operations.md").write_text("# Operations\n")
    done = subprocess.run(
        [str(tmp_path / "deploy" / "secrets.sh")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "docs/operations.md has no line for the Redis user sluice-worker" in done.stderr
    assert not (tmp_path / "deploy" / "secrets" / "redis_users").exists()
