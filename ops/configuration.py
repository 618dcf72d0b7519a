"""`python main.py config`: every setting with its value, where it comes from and what it means.

`python -m ops.configuration` prints the reference, docs/configuration.md, which is made from the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict

from config import Settings
from ops import output, session
from ops.settings_shown import SECTIONS, Shown, default_text, shown, takes
from setting_sources import SECRETS, origins, unknown_names

HEADER = ("setting", "value", "from", "meaning")
_INTRODUCTION = """\
# Configuration

Every setting, made from the code by `make reference`; `.env.example` has the same to copy. A setting
comes from the environment; else, for a secret, from the file that `NAME_FILE` names; else from `.env`
beside the program or in the folder it is started in; else it has its default. An empty value means that
it is not set. Times are in seconds, sizes in bytes, unless the name says otherwise.

`python main.py config` shows what is in force and where it comes from, `--changed` only what is not the
default; `python main.py check` tries it out. Wrong values are refused at start, each with a line that names
the variable, what it got and what it takes.

Secrets, each also as `NAME_FILE`: {secrets}. They are never shown and never logged.
"""


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Teach the command line `config`."""
    parser = commands.add_parser("config", help="show every setting, its value and where it comes from")
    parser.set_defaults(run=main, action="config")
    parser.add_argument("--changed", action="store_true", help="only what is not the default")
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def main(settings: Settings, chosen: argparse.Namespace) -> int:
    """Print the settings; the exit status."""

    def job() -> int:
        found = [one for one in shown(settings, origins(Settings)) if one.changed or not chosen.changed]
        if chosen.json:
            output.json_array(({**asdict(one), "changed": one.changed} for one in found), sys.stdout)
            return 0
        output.table(HEADER, map(_cells, found), sys.stdout)
        if not found:
            print("nothing is set: every setting has its default")
        for sentence in misspelled():
            print(f"sluice: {sentence}", file=sys.stderr)
        return 0

    return session.run(job)


def misspelled() -> Iterator[str]:
    """A sentence for each name in a `.env` that means nothing here."""
    for name, path in unknown_names(Settings):
        yield f"{output.excerpt(name)} in {path} is no setting, and has no effect (docs/configuration.md)"


def _cells(one: Shown) -> tuple[str, ...]:
    return one.name, output.excerpt(one.value, 60), one.origin, one.meaning


def reference() -> str:
    """docs/configuration.md, the same on every machine: defaults that depend on it their meaning tells."""
    secrets = ", ".join(f"`{name.upper()}`" for name in SECRETS)
    parts = [_INTRODUCTION.format(secrets=secrets)]
    section = ""
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            section = SECTIONS[name]
            parts.append(f"\n## {section}\n\n| setting | default | takes | meaning |\n|---|---|---|---|\n")
        cells = (f"`{name.upper()}`", _code(default_text(field)), takes(field), field.description or "")
        parts.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n")
    return "".join(parts)


def _code(text: str) -> str:
    return " ".join(f"`{part}`" for part in text.split(",") if part)


if __name__ == "__main__":
    sys.stdout.write(reference())
