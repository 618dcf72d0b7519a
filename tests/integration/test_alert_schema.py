"""Tables of rules, alerts and registry: what they refuse, their triggers, what a downgrade leaves."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from ops import migrate
from tests.alerts import add_rule
from tests.integration.test_migrations import rows, run, settings
from tests.support import Database

MAX: dict[str, Any] = {"kind": "max", "value": 1.0}
RATE: dict[str, Any] = {"kind": "rate", "value": 1.0, "window_sec": 60.0}
SILENCE: dict[str, Any] = {"kind": "silence", "value": 60.0}
STATE: dict[str, Any] = {"kind": "equals", "value_text": "open"}
INF, NAN = float("inf"), float("nan")

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("thresholds_id_length", MAX | {"id": ""}),
    ("thresholds_id_length", MAX | {"id": "x" * 101}),
    ("thresholds_device_pattern_length", MAX | {"device_pattern": ""}),
    ("thresholds_sensor_pattern_length", MAX | {"sensor_pattern": "x" * 101}),
    ("thresholds_kind_known", MAX | {"kind": "MAX"}),
    ("thresholds_severity_known", MAX | {"severity": "fatal"}),
    ("thresholds_value_fits_kind", {"kind": "max"}),
    ("thresholds_value_fits_kind", MAX | {"value": INF}),
    ("thresholds_value_fits_kind", MAX | {"value": NAN}),
    ("thresholds_value_fits_kind", {"kind": "min", "value": -INF}),
    ("thresholds_value_fits_kind", RATE | {"value": 0.0}),
    ("thresholds_value_fits_kind", RATE | {"value": NAN}),
    ("thresholds_value_fits_kind", SILENCE | {"value": 0.0}),
    ("thresholds_value_fits_kind", SILENCE | {"value": 1e9}),
    ("thresholds_value_fits_kind", SILENCE | {"value": NAN}),
    ("thresholds_value_fits_kind", STATE | {"value": 1.0}),
    ("thresholds_text_fits_kind", {"kind": "differs"}),
    ("thresholds_text_fits_kind", MAX | {"value_text": "x"}),
    ("thresholds_window_fits_kind", {"kind": "rate", "value": 1.0}),
    ("thresholds_window_fits_kind", RATE | {"window_sec": 0.0}),
    ("thresholds_window_fits_kind", RATE | {"window_sec": 86400.0 * 31 + 1}),
    ("thresholds_window_fits_kind", RATE | {"window_sec": NAN}),
    ("thresholds_window_fits_kind", MAX | {"window_sec": 60.0}),
    ("thresholds_hysteresis_fits_kind", MAX | {"hysteresis": -1.0}),
    ("thresholds_hysteresis_fits_kind", MAX | {"hysteresis": INF}),
    ("thresholds_hysteresis_fits_kind", MAX | {"hysteresis": NAN}),
    ("thresholds_hysteresis_fits_kind", STATE | {"hysteresis": 1.0}),
    ("thresholds_debounce_fits_kind", MAX | {"debounce_count": 0}),
    ("thresholds_debounce_fits_kind", MAX | {"debounce_sec": -1.0}),
    ("thresholds_debounce_fits_kind", MAX | {"debounce_sec": NAN}),
    ("thresholds_debounce_fits_kind", SILENCE | {"debounce_count": 2}),
    ("thresholds_debounce_fits_kind", SILENCE | {"debounce_sec": 1.0}),
]


def test_rules_that_no_worker_could_follow_are_refused(database: Database) -> None:
    for constraint, columns in REFUSED:
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            add_rule(database, **columns)
        assert refused.value.diag.constraint_name == constraint, columns


def test_rules_at_the_edge_of_what_is_accepted_go_in(database: Database) -> None:
    for columns in (
        MAX
        | {"id": "🌡" * 100, "device_pattern": "é" * 100, "hysteresis": 1e308, "debounce_count": 2**31 - 1},
        {"kind": "min", "value": -1.7e308},
        RATE | {"value": -5e-324, "window_sec": 86400.0 * 31},
        SILENCE | {"value": 1e-9},
        STATE | {"value_text": "", "debounce_sec": 9e8},
    ):
        add_rule(database, **columns)
    assert database.rows("select count(*) from thresholds") == [(5,)]


ALERT = {
    "id": "00000000-0000-0000-0000-000000000001",
    "threshold_id": "r",
    "device_id": "d",
    "sensor_type": "s",
    "threshold_type": "max",
    "severity": "warning",
    "status": "active",
    "first_time": "2026-01-01Z",
    "last_time": "2026-01-01Z",
    "created_at": "2026-01-01Z",
}


def add_alert(database: Database, **changes: Any) -> None:
    columns = ALERT | changes
    marks = ", ".join(["%s"] * len(columns))
    database.rows(f"insert into alerts ({', '.join(columns)}) values ({marks})", *columns.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "dropped"},
        {"created_at": None},
        {"status": "pending"},
        {"status": "resolved"},
        {"resolved_at": "2026-01-01Z"},
        {"status": "resolved", "created_at": None, "resolved_at": "2026-01-01Z"},
    ],
)
def test_alerts_whose_times_do_not_fit_their_status_are_refused(
    database: Database, changes: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        add_alert(database, **changes)


def test_one_alert_of_a_rule_and_series_is_open_and_any_number_resolved(database: Database) -> None:
    add_alert(database)
    ended = {"status": "resolved", "resolved_at": "2026-01-02Z"}
    for number in (2, 3):
        add_alert(database, **ended, id=f"00000000-0000-0000-0000-00000000000{number}")
    for status in ({}, {"status": "pending", "created_at": None}):
        with pytest.raises(psycopg.errors.UniqueViolation) as refused:
            add_alert(database, id="00000000-0000-0000-0000-000000000009", **status)
        assert refused.value.diag.constraint_name == "alerts_open"
    add_alert(database, id="00000000-0000-0000-0000-000000000009", sensor_type="other")


def test_a_device_is_online_or_offline_or_nobody_knows(database: Database) -> None:
    database.rows("insert into devices (device_id, status) values ('a', 'online'), ('b', null)")
    with pytest.raises(psycopg.errors.CheckViolation):
        database.rows("update devices set status = 'ON'")


def test_each_change_of_a_rule_has_a_version_of_its_own_and_a_time(database: Database) -> None:
    for name in ("a", "b"):
        add_rule(database, id=name, **MAX)
    database.rows("update thresholds set version = 1, updated_at = '2000-01-01Z' where id = 'a'")
    found = database.rows(
        "select id, version, updated_at > now() - interval '1 min' from thresholds order by 1"
    )
    assert found == [("a", 3, True), ("b", 2, True)]
    assert database.rows("select pg_get_serial_sequence('thresholds', 'version')") == [
        ("public.thresholds_version",)
    ]


def test_the_id_of_a_rule_does_not_change(database: Database) -> None:
    add_rule(database, id="a", **MAX)
    with pytest.raises(psycopg.errors.RaiseException, match="does not change"):
        database.rows("update thresholds set id = 'b'")
    database.rows("update thresholds set id = 'a'")


GLOBS = [
    ("a*", "a", True),
    ("a*", "a\nb", True),
    ("a?", "ab", True),
    ("a?", "a", False),
    ("a_", "ab", False),
    ("a_", "a_", True),
    ("50%", "50", False),
    ("50%", "50%", True),
    ("\\*", "\\x", True),
    ("\\*", "x", False),
    ("[a]", "a", False),
]
LEFT = """
    select 'function ' || proname from pg_proc where pronamespace = 'public'::regnamespace
    union all select relkind::text || ' ' || relname from pg_class
        where relnamespace = 'public'::regnamespace
    union all select 'type ' || typname from pg_type
        where typnamespace = 'public'::regnamespace and typelem = 0
"""


def globs(url: str) -> list[bool]:
    database = Database(url, timescale=False)
    return [
        bool(database.rows("select %s like sluice_like(%s)", text, glob)[0][0]) for glob, text, _ in GLOBS
    ]


def test_patterns_mean_the_same_in_a_schema_that_was_printed(empty_database: str) -> None:
    printed = run("postgresql://nobody@127.0.0.1:1/none", "sql")
    assert printed.returncode == 0, printed.stderr
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(printed.stdout)
    assert migrate.check(settings(empty_database)) == []
    expected = [matches for _, _, matches in GLOBS]
    assert globs(empty_database) == expected


def test_a_downgrade_leaves_nothing_behind(empty_database: str) -> None:
    chosen = settings(empty_database)
    migrate.upgrade(chosen, "0001_readings")
    before = set(rows(empty_database, LEFT))
    migrate.upgrade(chosen)
    assert globs(empty_database) == [matches for _, _, matches in GLOBS]
    assert len(rows(empty_database, LEFT)) > len(before)
    migrate.downgrade(chosen, "0001_readings")
    assert set(rows(empty_database, LEFT)) == before
