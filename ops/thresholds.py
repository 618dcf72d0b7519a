"""`python main.py thresholds`: rules listed, set, deleted, imported and exported (docs/alerts.md).

Exit status: 0 done, 1 something is wrong, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from config import Settings
from ops import output, rule_files, rule_store, rules, session
from ops.quantities import shown
from ops.rule_files import TOLD_ONLY, Unusable
from ops.rule_store import Listed
from ops.rules import Definition, Wrong
from ops.session import Refused, connected, storable, transaction
from thresholds import Kind

HEADER = ("id", "device", "sensor", "condition", "severity", "debounce", "enabled", "open")
_SHOWN = 20
_PATH = 4096


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Teach the command line `thresholds` and its actions."""
    parser = commands.add_parser("thresholds", help="list, set, delete, import, export rules")
    parser.set_defaults(run=main, show_help=parser.print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="show the rules")
    listing.add_argument(
        "--device", type=storable, metavar="PATTERN", help="those written so, or watching this device"
    )
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    _set_arguments(actions.add_parser("set", help="add a rule, or change it"))
    remove = actions.add_parser("delete", help="delete rules by their ids, or by their patterns")
    remove.add_argument("ids", nargs="*", type=storable, metavar="ID", help="as list shows it")
    remove.add_argument("--device", type=storable, metavar="PATTERN", help="device patterns that match")
    remove.add_argument("--sensor", type=storable, metavar="PATTERN", help="sensor patterns that match")
    remove.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    remove.set_defaults(refuse=remove.error)
    taken = actions.add_parser("import", help="take rules from a CSV or JSON file, all or none")
    taken.add_argument("file", metavar="FILE", help="*.csv, *.json, or - for CSV from standard input")
    taken.add_argument("--replace", action="store_true", help="delete the rules that are not in it")
    taken.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
    actions.add_parser("export", help="print the rules as CSV that import takes")


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("--device", required=True, metavar="PATTERN", help="device, * and ? allowed")
    parser.add_argument("--sensor", required=True, metavar="PATTERN", help="sensor, * and ? allowed")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--max", metavar="N", help="wrong above N")
    kinds.add_argument("--min", metavar="N", help="wrong below N")
    kinds.add_argument("--rate", metavar="N", help="wrong when rising faster a second; --rate=-N: falling")
    kinds.add_argument("--silence", metavar="SEC", help="wrong when nothing comes for SEC (or 5m, 2h, 1d)")
    kinds.add_argument("--equals", metavar="TEXT", help="wrong while the state is TEXT")
    kinds.add_argument("--differs", metavar="TEXT", help="wrong while the state is another")
    parser.add_argument("--window", metavar="SEC", help="over which a rate is measured")
    parser.add_argument("--severity", metavar="WORD", help="warning (the default) or critical")
    parser.add_argument("--hysteresis", metavar="N", help="how far behind the limit it clears")
    parser.add_argument("--debounce", metavar="N", help="readings in violation before an alert opens")
    parser.add_argument("--debounce-sec", metavar="SEC", help="time in violation before an alert opens")
    enabled = parser.add_mutually_exclusive_group()
    enabled.add_argument("--enabled", dest="enabled", action="store_true", default=True)
    enabled.add_argument(
        "--disabled", dest="enabled", action="store_false", help="keep it, do not apply it"
    )
    parser.add_argument("--id", metavar="ID", help="name the rule yourself")
    parser.add_argument("--sensor-id", metavar="ID", help="your name of the sensor, told in alerts")


def main(settings: Settings, chosen: argparse.Namespace) -> int:
    """Do what was chosen; the exit status."""
    actions = {
        "list": lambda: _list(settings, chosen.device, as_json=chosen.json),
        "set": lambda: _set(settings, chosen),
        "delete": lambda: _delete(settings, chosen),
        "import": lambda: _import(settings, chosen.file, replace=chosen.replace, dry=chosen.dry_run),
        "export": lambda: _export(settings),
    }
    return session.run(actions[chosen.action])


def _rows(settings: Settings, device: str | None = None) -> Iterator[Listed]:
    """The rules; once the last is taken the connection is closed, however long printing takes."""
    with connected(settings) as connection, transaction(connection):
        yield from rule_store.listed(connection, device)


def _list(settings: Settings, device: str | None, *, as_json: bool) -> int:
    found = _rows(settings, device)
    if as_json:
        output.json_array(({**row.rule._asdict(), TOLD_ONLY: row.active} for row in found), sys.stdout)
    elif not output.table(HEADER, (_cells(row) for row in found), sys.stdout):
        print("no rules" if device is None else f"no rule matches {shown(device)}")
    return 0


def _cells(row: Listed) -> Sequence[str]:
    rule = row.rule
    words = (rules.condition(rule), rule.severity.value, rules.debounce(rule) or "-")
    return rule.id, rule.device, rule.sensor, *words, "yes" if rule.enabled else "no", str(row.active)


def _set(settings: Settings, chosen: argparse.Namespace) -> int:
    rule = _chosen_rule(chosen)
    with connected(settings) as connection, transaction(connection):
        counts = rule_store.put(connection, [rule])
        series = rule_store.matching_series(connection, rule.device, rule.sensor)
    verb = "created" if counts.inserted else "changed" if counts.changed else "unchanged"
    print(f"{verb} {rules.line(rule)}")
    later = "" if series else " yet; the rule applies once readings come"
    print(f"matches {series} known series{later}")
    return 0


def _chosen_rule(chosen: argparse.Namespace) -> Definition:
    """What was typed, as a rule; ends the program with status 2 where it makes none."""
    kind = next(kind for kind in Kind if getattr(chosen, kind.value) is not None)
    limit = "text" if kind in rules.STATES else "value"
    try:
        return rules.accept(
            {
                "device": chosen.device,
                "sensor": chosen.sensor,
                "kind": kind.value,
                limit: getattr(chosen, kind.value),
                "window_sec": chosen.window,
                "hysteresis": chosen.hysteresis,
                "debounce_count": chosen.debounce,
                "debounce_sec": chosen.debounce_sec,
                "severity": chosen.severity,
                "enabled": chosen.enabled,
                "id": chosen.id,
                "sensor_id": chosen.sensor_id,
            }
        )
    except Wrong as wrong:
        names = {limit: kind.value, "window_sec": "window", "debounce_count": "debounce"}
        options = [(names.get(column, column), sentence) for column, sentence in wrong.problems]
        chosen.refuse("; ".join(f"--{name.replace('_', '-')} {sentence}" for name, sentence in options))
        raise  # not reached: `refuse` ends the program


def _delete(settings: Settings, chosen: argparse.Namespace) -> int:
    patterns = (chosen.device, chosen.sensor)
    if bool(chosen.ids) == any(part is not None for part in patterns):
        chosen.refuse("give ids, or --device and --sensor")
    if not chosen.ids and None in patterns:
        chosen.refuse("--device and --sensor go together; '*' matches every one")
    with connected(settings) as connection, transaction(connection, keep=not chosen.dry_run):
        if chosen.ids:
            gone = rule_store.delete(connection, chosen.ids)
        else:
            gone = rule_store.delete_matching(connection, *patterns)
    verb = "would delete" if chosen.dry_run else "deleted"
    for rule in gone[:_SHOWN]:
        print(f"{verb} {rules.line(rule)}")
    if len(gone) > _SHOWN:
        print(f"and {len(gone) - _SHOWN} more")
    if not chosen.ids and not gone:
        return session.complain("no rule has patterns that match; nothing was deleted")
    unknown = sorted(set(chosen.ids) - {rule.id for rule in gone})
    if unknown:
        return session.complain(
            f"there is no rule with the id {', '.join(shown(one, rules.MAX_NAME) for one in unknown)}"
        )
    return 0


def _import(settings: Settings, file: str, *, replace: bool, dry: bool) -> int:
    as_json = file.lower().endswith(".json")
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        found = rule_files.read(data, as_json=as_json)
    except OSError as error:
        raise Refused(f"cannot read {shown(file, _PATH)}: {error.strerror}") from None
    except Unusable as unusable:
        print(unusable, file=sys.stderr)
        raise Refused(f"{shown(file, _PATH)} was not imported; nothing was changed") from None
    with connected(settings) as connection, transaction(connection, keep=not dry):
        counts = rule_store.put(connection, found, replace=replace)
    print(f"dry run: {counts}" if dry else counts)
    return 0


def _export(settings: Settings) -> int:
    with output.Spool() as spool:
        for line in rule_files.csv_lines(row.rule for row in _rows(settings)):
            spool.add(line)
        spool.copy_to(sys.stdout)
    return 0
