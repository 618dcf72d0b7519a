"""`make audit`: what it says and how it ends, whatever the tool that it asks has found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

NOT_ASKED = "ERROR:pip_audit._cli:alembic: Dependency not found on PyPI and could not be audited"


@pytest.mark.parametrize(
    ("found", "tool_ends", "ends", "said"),
    [
        ("No known vulnerabilities found", 0, 0, ""),
        ("Found 2 known vulnerabilities in 1 package", 1, 1, "Found 2 known"),
        (NOT_ASKED, 1, 2, "requirements/core.txt was not judged"),
        ("requests.exceptions.ConnectionError: unreachable", 1, 2, "no finding, and no acquittal"),
    ],
)
def test_only_an_answer_counts(tmp_path: Path, found: str, tool_ends: int, ends: int, said: str) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    tool = tmp_path / ".venv/audit/bin/pip-audit"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\necho '{found}'\nexit {tool_ends}\n")
    tool.chmod(0o755)
    done = subprocess.run(
        [str(tmp_path / "requirements/audit.sh")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, said in done.stderr) == (ends, True), done.stdout + done.stderr
    asked = done.stdout.count("requirements/")
    assert asked == (1 if ends == 2 else 3)  # one list with a flaw is no reason to leave out the others
