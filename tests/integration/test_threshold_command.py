"""`python main.py thresholds`: rules set, listed, deleted, imported and exported on a real database."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
import schema_check
from config import Settings
from ops import rule_files, rule_store
from ops.globs import like, like_of
from ops.rules import Wrong, accept
from rules import _glob
from tests.commands import NAMES, PATIENT, Command, any_cells, commands, edge_cells, good_cells
from tests.support import ROOT, Database, is_long, wait_until
from tests.writing import InBackground

AWAY = "postgresql://sluice:s3cret-word@127.0.0.1:1/none"
KITCHEN = ("--device", "kitchen", "--sensor", "temperature")
COLUMNS = "id, device_pattern, sensor_pattern, kind, value, value_text, hysteresis, severity, enabled"
IN_DATABASE = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
INSERT = """
    insert into thresholds (id, device_pattern, sensor_pattern, kind, severity, value, value_text,
        window_sec, hysteresis, debounce_count, debounce_sec, enabled, sensor_id)
    values (%(id)s, %(device)s, %(sensor)s, %(kind)s, coalesce(%(severity)s, 'warning'), %(value)s,
        %(text)s, %(window_sec)s, coalesce(%(hysteresis)s, 0), coalesce(%(debounce_count)s, 1),
        coalesce(%(debounce_sec)s, 0), coalesce(%(enabled)s, true), %(sensor_id)s)
"""


@pytest.fixture
def run(database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return commands(database, capsys, monkeypatch)


def add_series(database: Database, *names: tuple[str, str]) -> None:
    for device, sensor in names:
        database.rows("insert into series (device_id, sensor_type) values (%s, %s)", device, sensor)


def add_alert(database: Database, rule_id: str, device: str, status: str) -> None:
    database.rows(
        """
        insert into alerts (id, threshold_id, device_id, sensor_type, threshold_type, severity, status,
            first_time, last_time, created_at, resolved_at)
        values (gen_random_uuid(), %s, %s, 't', 'max', 'warning', %s, now(), now(),
            case when %s <> 'pending' then now() end, case when %s = 'resolved' then now() end)
        """,
        rule_id,
        device,
        *[status] * 3,
    )


@contextlib.contextmanager
def listening(database: Database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("listen sluice_thresholds")
        yield connection


def heard(connection: psycopg.Connection) -> list[str]:
    """What was announced so far: our own word, sent last, ends the wait."""
    connection.execute("notify sluice_thresholds, 'end'")
    found: list[str] = []
    for note in connection.notifies(timeout=10):
        if note.payload == "end":
            return found
        found.append(note.payload)
    raise AssertionError("the last notification did not come")


def test_setting_the_same_rule_again_changes_it(run: Command, database: Database) -> None:
    add_series(database, ("kitchen", "temperature"))
    first = run("thresholds", "set", *KITCHEN, "--max", "30", "--hysteresis", "2")
    assert (first.status, first.errors) == (0, "")
    created, matches = first.told.splitlines()
    rule_id = created.split()[1].rstrip(":")
    assert created == (
        f"created {rule_id}: device kitchen, sensor temperature, max 30, clears at 28, warning"
    )
    assert matches == "matches 1 known series"
    again = run("thresholds", "set", *KITCHEN, "--max", "30", "--hysteresis", "2")
    assert again.told.startswith(f"unchanged {rule_id}: ")
    changed = run("thresholds", "set", *KITCHEN, "--max", "31", "--disabled")
    assert changed.told.startswith(f"changed {rule_id}: ")
    assert database.rows(f"select {COLUMNS} from thresholds") == [
        (rule_id, "kitchen", "temperature", "max", 31.0, None, 0.0, "warning", False)
    ]
    other = run("thresholds", "set", *KITCHEN, "--max", "35", "--severity", "critical")
    assert other.told.startswith("created ")
    assert len(database.rows("select id from thresholds")) == 2


@pytest.mark.parametrize(
    ("condition", "row"),
    [
        (["--min", "-5.5"], ("min", -5.5, None, None)),
        (["--rate=-1e-3", "--window", "5m"], ("rate", -0.001, None, 300.0)),
        (["--silence", "2h"], ("silence", 7200.0, None, None)),
        (["--equals", "open"], ("equals", None, "open", None)),
        (["--differs", ""], ("differs", None, "", None)),
    ],
)
def test_every_kind_can_be_set(run: Command, database: Database, condition: list[str], row: Any) -> None:
    done = run("thresholds", "set", "--device", "room-*", "--sensor", "?", *condition)
    assert (done.status, done.errors) == (0, "")
    assert done.told.endswith("matches 0 known series yet; the rule applies once readings come\n")
    assert database.rows("select kind, value, value_text, window_sec from thresholds") == [row]


def test_a_rule_of_ones_own_name_tells_all_that_was_given(run: Command, database: Database) -> None:
    words = ["--id", "hot", "--debounce", "3", "--debounce-sec", "90s", "--sensor-id", "s-17"]
    assert run("thresholds", "set", *KITCHEN, "--max", "30", *words).status == 0
    assert database.rows("select id, debounce_count, debounce_sec, sensor_id from thresholds") == [
        ("hot", 3, 90.0, "s-17")
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([*KITCHEN, "--max", "nan"], "--max is 'nan': the value is NaN"),
        ([*KITCHEN, "--max", "warm"], "--max is 'warm'"),
        ([*KITCHEN, "--rate", "1"], "--window is missing"),
        ([*KITCHEN, "--max", "1", "--debounce", "0"], "--debounce is 0"),
        ([*KITCHEN, "--max", "1", "--debounce-sec", "x"], "--debounce-sec is 'x'"),
        ([*KITCHEN, "--equals", "a\udcff"], "--equals holds a character that cannot be stored"),
        ([*KITCHEN, "--max", "1", "--severity", "fatal"], "--severity is 'fatal'"),
        ([*KITCHEN, "--max", "1", "--sensor-id", "\udcff"], "--sensor-id holds a character"),
        (["--device", "", "--sensor", "t", "--max", "1"], "--device is missing"),
        (["--device", "k", "--max", "1"], "required: --sensor"),
        (KITCHEN, "one of the arguments --max --min --rate --silence --equals --differs is required"),
        ([*KITCHEN, "--max", "1", "--min", "0"], "not allowed with argument"),
    ],
)
def test_a_wrong_rule_is_status_2_and_one_complaint(
    run: Command, database: Database, words: list[str], complaint: str
) -> None:
    done = run("thresholds", "set", *words)
    assert (done.status, done.told) == (2, "")
    assert complaint in done.errors.splitlines()[-1]
    assert not database.rows("select id from thresholds")


def test_list_is_a_table_in_words_with_the_active_alerts(run: Command, database: Database) -> None:
    run("thresholds", "set", *KITCHEN, "--max", "30", "--hysteresis", "2", "--id", "hot", "--debounce", "3")
    run(
        "thresholds",
        "set",
        "--device",
        "*",
        "--sensor",
        "*",
        "--silence",
        "10m",
        "--id",
        "dead",
        "--disabled",
    )
    for device, status in [("a", "active"), ("b", "active"), ("c", "pending"), ("d", "resolved")]:
        add_alert(database, "dead", device, status)
    done = run("thresholds", "list")
    assert (done.status, done.errors) == (0, "")
    assert [line.split("  ") for line in map(squeezed, done.told.splitlines())] == [
        ["id", "device", "sensor", "condition", "severity", "debounce", "enabled", "open"],
        ["dead", "*", "*", "silence 10m", "warning", "-", "no", "2"],
        ["hot", "kitchen", "temperature", "max 30, clears at 28", "warning", "3 readings", "yes", "0"],
    ]
    starts = {line.index("warning") for line in done.told.splitlines()[1:]}
    assert len(starts) == 1, "the columns are not aligned"


def squeezed(line: str) -> str:
    while "   " in line:
        line = line.replace("   ", "  ")
    return line


@pytest.mark.parametrize(
    ("device", "ids"),
    [
        ("kitchen", {"all", "exact", "kit"}),
        ("cellar", {"all"}),
        ("kit*", {"exact", "kit"}),
        ("*", {"all", "exact", "kit", "percent"}),
        ("100%_a", {"all", "percent"}),
        ("100xxa", {"all"}),
    ],
)
def test_list_of_a_device_shows_the_rules_that_watch_it(run: Command, device: str, ids: set[str]) -> None:
    for rule_id, pattern in [("all", "*"), ("exact", "kitchen"), ("kit", "kit?hen"), ("percent", "100%_a")]:
        run("thresholds", "set", "--device", pattern, "--sensor", "t", "--max", "1", "--id", rule_id)
    told = run("thresholds", "list", "--device", device, "--json").told
    assert {rule["id"] for rule in json.loads(told)} == ids


def test_lists_without_rules_say_so_or_are_empty_arrays(run: Command) -> None:
    assert run("thresholds", "list") == (0, "no rules\n", "")
    assert run("thresholds", "list", "--device", "k*") == (0, "no rule matches 'k*'\n", "")
    assert run("thresholds", "list", "--json") == (0, "[]\n", "")


def test_delete_by_id_says_what_it_deleted_and_names_what_there_is_not(
    run: Command, database: Database
) -> None:
    run("thresholds", "set", *KITCHEN, "--max", "30", "--id", "hot")
    run("thresholds", "set", *KITCHEN, "--min", "3", "--id", "cold")
    dry = run("thresholds", "delete", "hot", "--dry-run")
    line = "hot: device kitchen, sensor temperature, max 30, warning\n"
    assert dry == (0, f"would delete {line}", "")
    done = run("thresholds", "delete", "hot", "none", "nor-this")
    assert done == (1, f"deleted {line}", "sluice: there is no rule with the id 'none', 'nor-this'\n")
    assert database.rows("select id from thresholds") == [("cold",)]


def test_delete_by_patterns_takes_the_rules_written_so(run: Command, database: Database) -> None:
    for device in ("room-1", "room-*", "rooms", "*"):
        run("thresholds", "set", "--device", device, "--sensor", "t", "--max", "1", "--id", device)
    dry = run("thresholds", "delete", "--device", "room-*", "--sensor", "*", "--dry-run")
    assert [line.split()[2] for line in dry.told.splitlines()] == ["room-*:", "room-1:"]
    assert len(database.rows("select id from thresholds")) == 4
    assert run("thresholds", "delete", "--device", "room-*", "--sensor", "*").status == 0
    assert {row[0] for row in database.rows("select id from thresholds")} == {"rooms", "*"}
    none = run("thresholds", "delete", "--device", "room-*", "--sensor", "*")
    assert none == (1, "", "sluice: no rule has patterns that match; nothing was deleted\n")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["x", *KITCHEN],
        ["--device", "a"],
        ["--sensor", "a"],
        ["\udcff"],
        ["--device", "", "--sensor", "*"],
    ],
)
def test_a_wrong_delete_is_status_2_and_deletes_nothing(
    run: Command, database: Database, words: list[str]
) -> None:
    run("thresholds", "set", *KITCHEN, "--max", "30", "--id", "x")
    assert run("thresholds", "delete", *words).status == 2
    assert len(database.rows("select id from thresholds")) == 1


def test_import_inserts_changes_and_with_replace_deletes(
    run: Command, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "rules.csv"
    file.write_text("device,sensor,kind,value,severity\na,t,max,1,\nb,t,max,2,\nc,t,max,3,critical\n")
    assert run("thresholds", "import", str(file)).told == "inserted 3, changed 0, unchanged 0, deleted 0\n"
    file.write_text("device,sensor,kind,value,severity\na,t,max,1,\nb,t,max,9,\nd,t,min,4,\n")
    counts = "inserted 1, changed 1, unchanged 1, deleted 1\n"
    dry = run("thresholds", "import", str(file), "--replace", "--dry-run")
    assert dry == (0, f"dry run: {counts}", "")
    assert len(database.rows("select id from thresholds")) == 3
    assert run("thresholds", "import", str(file), "--replace") == (0, counts, "")
    found = database.rows("select device_pattern, kind, value from thresholds order by 1")
    assert found == [("a", "max", 1.0), ("b", "max", 9.0), ("d", "min", 4.0)]


def test_a_second_import_of_the_same_file_touches_and_announces_nothing(
    run: Command, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "rules.csv"
    file.write_text("device,sensor,kind,value\n" + "".join(f"d{n},t,max,{n}\n" for n in range(50)))
    rows = "select xmin, xmax, version, updated_at from thresholds order by id"
    with listening(database) as connection:
        run("thresholds", "import", str(file))
        assert heard(connection) == ["*"]
        before = database.rows(rows)
        for extra in ([], ["--replace"]):
            done = run("thresholds", "import", str(file), *extra)
            assert done.told == "inserted 0, changed 0, unchanged 50, deleted 0\n"
        assert heard(connection) == []
        assert database.rows(rows) == before
        run("thresholds", "set", "--device", "d7", "--sensor", "t", "--max", "8", "--id", "own")
        assert heard(connection) == ['["own"]']


def test_a_file_with_one_bad_line_changes_nothing(run: Command, database: Database, tmp_path: Path) -> None:
    file = tmp_path / "rules.csv"
    file.write_text("device,sensor,kind,value\na,t,max,1\nb,t,max,\n")
    done = run("thresholds", "import", str(file), "--replace")
    assert (done.status, done.told) == (1, "")
    assert done.errors.startswith("line 3, value: is missing; max takes the limit, a number\nsluice: ")
    assert done.errors.endswith("was not imported; nothing was changed\n")
    assert not database.rows("select id from thresholds")


def test_a_file_that_is_not_there_is_named(run: Command, tmp_path: Path) -> None:
    done = run("thresholds", "import", "no-such.csv")
    assert done == (1, "", "sluice: cannot read 'no-such.csv': No such file or directory\n")
    assert run("thresholds", "import", str(tmp_path)).status == 1


@pytest.mark.parametrize("name", ["rules.csv", "rules.json"])
def test_export_and_list_can_be_imported_again_without_a_change(
    run: Command, database: Database, tmp_path: Path, name: str
) -> None:
    run("thresholds", "set", *KITCHEN, "--rate", "0.1", "--window", "90", "--hysteresis", "0.025")
    run(
        "thresholds",
        "set",
        "--device",
        'a,"b"\n',
        "--sensor",
        " *",
        "--equals",
        "",
        "--severity",
        "critical",
    )
    database.rows("update thresholds set sensor_id = '' where kind = 'equals'")
    file = tmp_path / name
    told = run("thresholds", *(["export"] if name.endswith("csv") else ["list", "--json"])).told
    file.write_bytes(told.encode())
    done = run("thresholds", "import", str(file), "--replace")
    assert (done.errors, done.told) == ("", "inserted 0, changed 0, unchanged 2, deleted 0\n")


@pytest.fixture
def session(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """For many examples: connecting anew takes longer than one of them."""
    with psycopg.connect(database.url) as made:
        yield made


@IN_DATABASE
@given(cells=st.lists(good_cells(), min_size=1, max_size=8))
def test_the_round_trip_through_the_database_is_exact(
    session: psycopg.Connection[Any], cells: list[dict[str, Any]]
) -> None:
    session.rollback()
    rules = list({rule.id: rule for rule in map(accept, cells)}.values())
    rule_store.put(session, rules)  # type: ignore[arg-type]
    listed = [row.rule for row in rule_store.listed(session)]  # type: ignore[arg-type]
    text = "".join(rule_files.csv_lines(listed))
    again = rule_files.read(text.encode(), as_json=False)
    assert sorted(again) == sorted(rules)
    session.execute("drop table sluice_rules")
    counts = rule_store.put(session, again, replace=True)  # type: ignore[arg-type]
    assert counts == (0, 0, len(rules), 0)


def is_accepted(cells: dict[str, Any]) -> bool:
    try:
        accept(cells)
    except Wrong:
        return False
    return True


def is_taken(connection: psycopg.Connection, cells: dict[str, Any]) -> bool:
    """Whether PostgreSQL takes these very values, the defaults put in."""
    optional = ("value", "text", "window_sec", "hysteresis", "debounce_count", "debounce_sec")
    parameters = dict.fromkeys([*optional, "severity", "enabled", "sensor_id"]) | cells
    parameters["id"] = "x" if parameters["id"] is None else parameters["id"]
    try:
        connection.execute(INSERT, parameters)
    except psycopg.Error:
        return False
    finally:
        connection.rollback()
    return True


def test_at_every_edge_of_every_column_accepting_is_what_postgresql_does(database: Database) -> None:
    with psycopg.connect(database.url) as connection:
        answers = [(is_accepted(cells), is_taken(connection, cells), cells) for cells in edge_cells()]
    assert [answer for answer in answers if answer[0] != answer[1]] == []
    assert 100 < sum(accepted for accepted, _, _ in answers) < len(answers) - 100


@settings(IN_DATABASE, max_examples=300)
@given(cells=any_cells())
def test_what_is_accepted_postgresql_accepts_and_what_is_refused_it_refuses(
    session: psycopg.Connection[Any], cells: dict[str, Any]
) -> None:
    assert is_accepted(cells) == is_taken(session, cells)


@st.composite
def patterns_and_names(draw: st.DrawFn) -> tuple[str, str]:
    """A pattern, and a name that it matches, but perhaps for one sign in another's place."""
    signs = st.sampled_from("ab*?%_\\\né")
    pattern = draw(st.one_of(st.text(signs, min_size=1, max_size=6), NAMES))
    parts = [draw(st.text(signs, max_size=2)) if sign == "*" else sign for sign in pattern]
    if draw(st.booleans()):
        parts[draw(st.integers(0, len(parts) - 1))] = draw(signs)
    return pattern, "".join(parts)


def test_a_glob_means_the_same_in_sql_as_in_the_rules(database: Database) -> None:
    query = f"select %(n)s like %(l)s, %(n)s like {like_of('p')} from (select %(p)s::text as p) as one"
    with psycopg.connect(database.url, autocommit=True) as connection:

        @settings(PATIENT, max_examples=300)
        @given(patterns_and_names())
        def agrees(drawn: tuple[str, str]) -> None:
            pattern, name = drawn
            parameters = {"n": name, "l": like(pattern), "p": pattern}
            expected = _glob(pattern).fullmatch(name) is not None
            assert connection.execute(query, parameters).fetchall() == [(expected, expected)]

        agrees()


def test_many_rules_are_imported_listed_and_exported_in_seconds(
    run: Command, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 100_000 if is_long() else 20_000
    file = tmp_path / "rules.csv"
    with file.open("w") as out:
        out.write("device,sensor,kind,value,hysteresis\n")
        out.writelines(f"device-{n},temperature,max,{n % 50},1\n" for n in range(count))
    seconds = {}
    for name, words in {
        "import": ["import", str(file)],
        "import again": ["import", str(file), "--replace"],
        "export": ["export"],
        "list": ["list"],
    }.items():
        began = time.monotonic()
        done = run("thresholds", *words)
        seconds[name] = time.monotonic() - began
        assert (done.status, done.errors) == (0, "")
        if name.startswith("import"):
            inserted = count if name == "import" else 0
            counts = f"inserted {inserted}, changed 0, unchanged {count - inserted}, deleted 0\n"
            assert done.told == counts
        else:
            assert done.told.count("\n") == count + 1
    with capsys.disabled():
        print(f"\n{count:,} rules:", ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items()))
    assert max(seconds.values()) < count * 0.0012


def test_two_imports_at_once_wait_for_each_other(database: Database) -> None:
    rules = [accept({"device": f"d{n}", "sensor": "t", "kind": "max", "value": 1}) for n in range(100)]
    with psycopg.connect(database.url) as first, psycopg.connect(database.url) as second:
        rule_store.put(first, rules)  # type: ignore[arg-type]
        second.execute("set local lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            rule_store.put(second, rules)  # type: ignore[arg-type]


def process(
    *words: str, environment: dict[str, str] | None = None, stdin: bytes = b"", **more: str
) -> subprocess.CompletedProcess[bytes]:
    """`python main.py thresholds …` as a user types it."""
    ours = {name.upper() for name in Settings.model_fields}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "thresholds", *words],
        env={**clean, **(environment or {}), **more},
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_as_a_process_it_imports_from_standard_input_and_exports_utf_8_anywhere(database: Database) -> None:
    rules = "device,sensor,kind,value\nküche,温度,max,30\n".encode()
    done = process("import", "-", stdin=rules, environment=database.environment())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"inserted 1, changed 0, unchanged 0, deleted 0\n"
    told = process(
        "export", environment=database.environment(), PYTHONIOENCODING="ascii", LC_ALL="C"
    ).stdout
    (row,) = csv.DictReader(io.StringIO(told.decode()))
    assert (row["device"], row["sensor"], row["value"]) == ("küche", "温度", "30")


def test_a_reader_that_has_seen_enough_is_no_error(database: Database) -> None:
    database.rows(
        """
        insert into thresholds (id, device_pattern, sensor_pattern, kind, value)
        select g, repeat('d', 90), 's', 'max', 1 from generate_series(1, 9999) as g
        """
    )
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "thresholds", "export"],
        env={**os.environ, **database.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        wait_until(lambda: running.poll() is not None)
    assert running.returncode == 0


@pytest.mark.parametrize(
    "words", [("list",), ("export",), ("set", *KITCHEN, "--max", "1"), ("delete", "x")]
)
def test_a_database_that_is_away_is_one_line_and_status_1(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", AWAY)
    done = commands(None, capsys, monkeypatch)("thresholds", *words)
    assert (done.status, done.told) == (1, "")
    assert done.errors.startswith("sluice: the database is not usable: ")
    assert done.errors.count("\n") == 1
    assert "s3cret-word" not in done.errors


def test_without_a_database_url_it_is_status_2_and_help_comes_all_the_same() -> None:
    done = process("list")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"sluice: DATABASE_URL is not set")
    alone = process()
    assert (alone.returncode, alone.stderr) == (2, b"")
    for action in (b"list", b"set", b"delete", b"import", b"export"):
        assert action in alone.stdout


def test_a_schema_that_is_behind_is_one_line_and_status_1(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_check, "REVISIONS", (*models.REVISIONS, "9999_next"))
    for words in (["list"], ["set", *KITCHEN, "--max", "1"], ["delete", "x"], ["export"]):
        done = run("thresholds", *words)
        assert (done.status, done.told) == (1, "")
        assert done.errors.endswith("run ./migrate.sh upgrade\n")
        assert done.errors.count("\n") == 1


def test_every_command_of_the_documentation_does_what_it_says(
    run: Command, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the page, beside two registered rooms; a redirection goes to a file."""
    monkeypatch.chdir(tmp_path)
    for device in ("room-7", "room-8"):
        database.rows("insert into series (device_id, sensor_type) values (%s, 'temperature')", device)
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    lines = re.findall(r"`(thresholds set .+?)`", page)
    lines += [line.removeprefix("python main.py ") for line in blocks.splitlines()]
    assert len(lines) > 15
    for line in lines:
        words, _, file = line.partition(" > ")
        done = run(*shlex.split(words, comments=True))
        expected = 1 if words.startswith("thresholds delete --device") else 0  # no rule is written so
        assert done.status == expected, (line, done.errors)
        if file:
            Path(file.split()[0]).write_text(done.told)
    csv_text = re.search(r"```csv\n(.*?)```", page, re.DOTALL)
    assert csv_text
    Path("page.csv").write_text(csv_text[1])
    assert run("thresholds", "import", "page.csv", "--replace").status == 0
    assert len(database.rows("select id from thresholds")) == csv_text[1].count("\n") - 1
    (statements,) = re.findall(r"```sql\n(insert .*?)```", page, re.DOTALL)
    database.rows(statements)
    assert ("hot-kitchen",) in database.rows("select id from thresholds")


def test_a_connection_that_is_cut_is_one_line_and_status_1_and_nothing_is_changed(
    run: Command, database: Database
) -> None:
    with psycopg.connect(database.url) as other:
        other.execute("lock table thresholds in exclusive mode")
        setting = InBackground(lambda: run("thresholds", "set", *KITCHEN, "--max", "1"))
        waiting = """
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'
        """
        wait_until(lambda: database.rows(waiting))
        done = setting.result()
    assert (done.status, done.told, done.errors.count("\n")) == (1, "", 1)
    assert done.errors.startswith("sluice: the database ")
    assert not database.rows("select id from thresholds")


def test_a_constraint_of_ones_own_is_told_in_one_line(run: Command, database: Database) -> None:
    database.rows("alter table thresholds add constraint mild check (value < 50)")
    done = run("thresholds", "set", *KITCHEN, "--max", "60")
    assert (done.status, done.told, done.errors.count("\n")) == (1, "", 1)
    assert done.errors.startswith("sluice: the database refused: CheckViolation: ")
    assert '"mild"' in done.errors
