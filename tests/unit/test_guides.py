"""The guides name commands, settings, files and events of the log that there are."""

from __future__ import annotations

import re
from functools import cache

import pytest

from config import Settings
from setting_sources import SECRETS
from tests.support import ROOT
from tests.unit.test_containers import commands as commands

PAGES = ("troubleshooting", "upgrading", "security", "scaling")
OTHERS = {"BIND_ADDRESS", "SLUICE_IMAGE"}  # of deploy/compose.env.example


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def source() -> str:
    paths = [
        path for path in ROOT.glob("**/*.py") if path.relative_to(ROOT).parts[0] not in ("tests", ".venv")
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_guide_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page(name))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / "docs" / path).resolve() if path else ROOT / "docs" / f"{name}.md"
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_settings_of_a_guide_are_there(name: str, commands: set[str]) -> None:
    text = page(name)
    assert set(re.findall(r"main\.py ([a-z][a-z-]+)", text)) <= commands
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", text))
    settings = {field.upper() for field in Settings.model_fields}
    assert named <= settings | {f"{secret.upper()}_FILE" for secret in SECRETS} | OTHERS | {"NAME_FILE"}


def test_events_that_the_guide_to_trouble_names_are_logged() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page("troubleshooting")))
    events = {name for name in named if f"| `{name}" in page("operations") or f'"{name}"' in source()}
    tables_and_reasons = {"message_id"}
    assert len(events) > 8
    assert named - events <= tables_and_reasons
