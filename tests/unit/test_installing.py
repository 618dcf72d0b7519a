"""`requirements/install.sh`: what it says on a machine that will not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the installer, and nothing to install."""
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "install.sh", tmp_path / "requirements")
    return tmp_path


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run(folder: Path, command: str, user: int | None = None, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        ["/bin/bash", "-c", f". requirements/install.sh; {command}"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        user=user,
    )
    return done.returncode, done.stdout


def test_a_named_python_that_is_too_old_is_refused_though_another_would_do(folder: Path) -> None:
    old = program(folder / "old", "exit 1")
    status, said = run(folder, "find_python", PYTHON=str(old))
    assert (status, said) == (1, f"PYTHON is {old}, which is no Python 3.11 or newer; Sluice needs one.\n")
    assert run(folder, "find_python", PYTHON=sys.executable) == (0, f"{sys.executable}\n")


def test_an_environment_of_an_older_python_is_made_anew(folder: Path) -> None:
    program(folder / ".venv" / "bin" / "python", 'case "$2" in *version_info*) exit 1;; esac')
    new = program(
        folder / "new", f'[ "$2" = venv ] && mkdir -p .venv/bin && exit; exec {sys.executable} "$@"'
    )
    status, said = run(folder, "ensure_venv", PYTHON=str(new))
    assert (status, said) == (0, "Making a virtual environment in .venv …\n")
    assert not (folder / ".venv" / "bin" / "python").exists()


def test_a_python_without_venv_leaves_no_half_made_environment(folder: Path) -> None:
    bare = program(
        folder / "bare", f'[ "$2" = venv ] && mkdir -p .venv/bin && exit 1; exec {sys.executable} "$@"'
    )
    status, said = run(folder, "ensure_venv", PYTHON=str(bare))
    assert status == 1
    assert "apt install python3-venv" in said
    assert not (folder / ".venv").exists()


def test_a_folder_that_is_read_only_is_told_by_name(folder: Path) -> None:
    program(folder / "new", "exit 0")
    folder.chmod(0o555)
    # Root may write everywhere. Relative, since nobody else may enter the folders above.
    status, said = run(folder, "ensure_venv", user=None if os.getuid() else 65_534, PYTHON="./new")
    folder.chmod(0o755)
    assert status == 1
    assert f"Nothing can be written in {folder}" in said


def test_packages_that_cannot_be_had_are_told_with_what_to_do(folder: Path) -> None:
    (folder / "requirements" / "core.txt").write_text("alembic==1.0\n")
    program(folder / ".venv" / "bin" / "python", "exit 1")
    status, said = run(folder, "install_pinned core.txt")
    assert status == 1
    assert "PIP_INDEX_URL" in said
    assert '"Which machines" in README.md' in said
    assert "\n## Which machines\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert not (folder / ".venv" / "installed-core.txt").exists()
