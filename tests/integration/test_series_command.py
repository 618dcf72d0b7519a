"""`python main.py series`: the registry listed, series switched on and off, also beside workers."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

import models
import schema_check
from ops import series
from tests.commands import Command, commands
from tests.support import Database
from tests.writing import InBackground, together


@pytest.fixture
def run(database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return commands(database, capsys, monkeypatch)


def add(database: Database, device: str, sensor: str, **columns: Any) -> None:
    names = ["device_id", "sensor_type", *columns]
    database.rows(
        f"insert into series ({', '.join(names)}) values ({', '.join(['%s'] * len(names))})",
        device,
        sensor,
        *columns.values(),
    )


def active(database: Database) -> dict[tuple[str, str], bool]:
    return {row[:2]: row[2] for row in database.rows("select device_id, sensor_type, active from series")}


def ago(database: Database, device: str, seconds: int) -> None:
    database.rows(
        "update series set last_seen = now() - make_interval(secs => %s) where device_id = %s",
        seconds,
        device,
    )


def names(done: Any) -> list[str]:
    return [one["device"] for one in json.loads(done.told)]


def test_list_is_a_table_in_the_order_of_the_names(run: Command, database: Database) -> None:
    add(database, "b", "door", last_value_text="open\x1b", active=False)
    known = {"owner": "place-1", "unit": "°C", "first_seen": "2026-01-01T00:00:00Z"}
    add(database, "a", "t", **known, last_value=21.5, last_time="2026-01-02T03:04:05+01:00")
    ago(database, "a", 200)
    done = run("series", "list")
    assert (done.status, done.errors) == (0, "")
    header, first, second = done.told.splitlines()
    assert header.split("  ")[0] == "device"
    cells = first.split()
    assert cells[:6] == ["a", "t", "place-1", "°C", "yes", "21.5"]
    assert cells[6:] == ["2026-01-02", "02:04:05Z", "3m", "2026-01-01", "00:00:00Z"]
    assert second.split()[:8] == ["b", "door", "-", "-", "no", '"open\\x1b"', "-", "-"]
    assert first.index("yes") == second.index("no ") == header.index("active")


def test_list_as_json_tells_the_same_for_machines(run: Command, database: Database) -> None:
    add(database, "a", "t", last_value=21.5, last_time="2026-01-02T03:04:05Z")
    (found,) = json.loads(run("series", "list", "--json").told)
    assert found["device"] == "a"
    assert (found["last_value"], found["last_value_text"], found["active"]) == (21.5, None, True)
    assert found["last_time"].startswith("2026-01-0")
    assert (found["age_sec"], found["unit"], found["owner"]) == (None, None, "")


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ([], ["off", "old", "room-1", "room_1"]),
        (["--device", "room_?"], ["room_1"]),
        (["--device", "room*"], ["room-1", "room_1"]),
        (["--sensor", "door"], ["old"]),
        (["--inactive"], ["off"]),
        (["--stale", "1h"], ["off", "old"]),
        (["--stale", "3d"], []),
        (["--stale", "1h", "--inactive"], ["off"]),
    ],
)
def test_list_can_be_narrowed(
    run: Command, database: Database, words: list[str], devices: list[str]
) -> None:
    for device in ("room-1", "room_1"):
        add(database, device, "t")
        ago(database, device, 60)
    add(database, "old", "door")
    ago(database, "old", 7200)
    # registered a day ago, and no reading ever came
    add(database, "off", "t", active=False)
    database.rows("update series set first_seen = now() - interval '1 day' where device_id = 'off'")
    assert names(run("series", "list", "--json", *words)) == devices


def test_a_thousand_series_are_shown_and_the_rest_counted(run: Command, database: Database) -> None:
    database.rows(
        "insert into series (device_id, sensor_type) select 'd' || lpad(g::text, 4, '0'), 't'"
        " from generate_series(1, 1003) as g"
    )
    done = run("series", "list", "--device", "d*")
    assert (done.told.count("\n"), done.errors) == (1001, "3 more; --all shows them\n")
    assert len(names(run("series", "list", "--json"))) == 1000
    everything = run("series", "list", "--all")
    assert (everything.told.count("\n"), everything.errors) == (1004, "")
    database.rows("delete from series where device_id > 'd1000'")
    assert run("series", "list").errors == ""


def test_no_series_is_said(run: Command) -> None:
    assert run("series", "list") == (0, "no series matches\n", "")
    assert run("series", "list", "--json") == (0, "[]\n", "")


def test_patterns_switch_series_and_only_those_that_differ(run: Command, database: Database) -> None:
    for device in ("room-1", "room-2", "hall"):
        add(database, device, "t")
    add(database, "room-3", "t", active=False)
    pattern = ("--device", "room-*", "--sensor", "*")
    dry = run("series", "deactivate", *pattern, "--dry-run")
    assert dry == (0, "would deactivate 2 of 3 matching series\n", "")
    assert active(database)["room-1", "t"]
    assert run("series", "deactivate", *pattern) == (0, "deactivated 2 of 3 matching series\n", "")
    assert active(database) == {
        ("hall", "t"): True,
        ("room-1", "t"): False,
        ("room-2", "t"): False,
        ("room-3", "t"): False,
    }
    assert run("series", "deactivate", *pattern).told == "deactivated 0 of 3 matching series\n"
    assert run("series", "activate", "--device", "room-3", "--sensor", "t").told == (
        "activated 1 of 1 matching series\n"
    )
    assert active(database)["room-3", "t"]


def test_more_series_than_one_step_are_all_switched_and_announced(run: Command, database: Database) -> None:
    count = 2 * series._STEP + 7
    database.rows(
        "insert into series (device_id, sensor_type) select 'd' || g, 't' from generate_series(1, %s) as g",
        count,
    )
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("listen sluice_series")
        done = run("series", "deactivate", "--device", "*", "--sensor", "*")
        assert done.told == f"deactivated {count} of {count} matching series\n"
        told = {note.payload for note in connection.notifies(timeout=10, stop_after=count)}
    assert len(told) == count
    assert not any(active(database).values())


@pytest.mark.parametrize("word", ["activate", "deactivate"])
def test_a_literal_series_that_is_not_known_is_registered(
    run: Command, database: Database, word: str
) -> None:
    names = ("--device", "küche", "--sensor", "t")
    dry = run("series", word, *names, "--dry-run")
    assert (dry.status, dry.told.splitlines()[0]) == (0, "would register device küche, sensor t")
    assert active(database) == {}
    done = run("series", word, *names)
    state = "active" if word == "activate" else "inactive"
    assert done == (
        0,
        f"registered device küche, sensor t\nas {state}: no reading of it is known yet\n",
        "",
    )
    assert active(database) == {("küche", "t"): word == "activate"}
    assert run("series", word, *names).told == f"{word}d 0 of 1 matching series\n"


@pytest.mark.parametrize("word", ["activate", "deactivate"])
def test_a_pattern_that_matches_nothing_is_status_1_and_registers_nothing(
    run: Command, database: Database, word: str
) -> None:
    add(database, "hall", "t")
    done = run("series", word, "--device", "room-?", "--sensor", "t")
    assert done == (1, "", "sluice: no series matches; nothing was changed\n")
    assert active(database) == {("hall", "t"): True}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "ACTION"),
        (["list", "--stale", "soon"], "is 'soon': "),
        (["list", "--stale", "-5"], "is -5; it takes 0 to 1e9 seconds"),
        (["list", "--stale=-5s"], "it takes 0 to 1e9 seconds"),
        (["list", "--device", "\udcff"], "it takes UTF-8"),
        (["activate", "--device", "a"], "required: --sensor"),
        (["activate", "--device", "", "--sensor", "t"], "at least one character"),
        (["activate", "--device", " ", "--sensor", "t"], "the device id is empty"),
        (["activate", "--device", "a", "--sensor", "t" * 101], "the sensor type has 101 characters"),
        (["deactivate", "--device", "a\x00", "--sensor", "t"], "none of them NUL"),
    ],
)
def test_wrong_usage_is_status_2(
    run: Command, database: Database, words: list[str], complaint: str
) -> None:
    done = run("series", *words)
    assert done.status == 2
    assert complaint in done.told + done.errors
    assert active(database) == {}


def test_rows_are_locked_in_the_order_of_the_key(run: Command, database: Database) -> None:
    """A worker that holds an early key and wants a late one must find the late one free."""
    database.rows("insert into series (device_id, sensor_type) values ('c', 't'), ('b', 't'), ('a', 't')")
    with psycopg.connect(database.url) as worker:
        worker.execute("select from series where device_id = 'a' for update")
        switching = InBackground(lambda: run("series", "deactivate", "--device", "*", "--sensor", "*"))
        waiting = (
            "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        while not database.rows(waiting):
            assert not switching.done
        worker.execute("set local lock_timeout = '2s'")
        worker.execute("select from series where device_id in ('b', 'c') order by device_id for update")
        worker.commit()
    assert switching.result().told == "deactivated 3 of 3 matching series\n"


def test_switching_beside_workers_that_upsert_in_key_order_never_deadlocks(
    run: Command, database: Database
) -> None:
    upsert = """
        insert into series (device_id, sensor_type, last_value)
        select 'd' || lpad(g::text, 4, '0'), 't', random() from generate_series(1, 500) as g order by 1, 2
        on conflict (device_id, sensor_type) do update set last_value = excluded.last_value
    """
    database.rows(upsert)

    def work() -> None:
        with psycopg.connect(database.url) as connection:
            for _ in range(20):
                connection.execute(upsert)
                connection.commit()

    def switch() -> None:
        for word in ("deactivate", "activate") * 5:
            assert run("series", word, "--device", "*", "--sensor", "t").status == 0

    together([work, work, switch])
    assert all(active(database).values())


def test_a_schema_that_is_behind_is_one_line_and_status_1(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_check, "REVISIONS", (*models.REVISIONS, "9999_next"))
    for words in (["list"], ["activate", "--device", "a", "--sensor", "b"]):
        done = run("series", *words)
        assert (done.status, done.told, done.errors.count("\n")) == (1, "", 1)
        assert done.errors.endswith("run ./migrate.sh upgrade\n")


def test_a_database_that_is_away_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://sluice:s3cret-word@127.0.0.1:1/none")
    done = commands(None, capsys, monkeypatch)("series", "list")
    assert (done.status, done.told, done.errors.count("\n")) == (1, "", 1)
    assert done.errors.startswith("sluice: the database is not usable: ")
    assert "s3cret-word" not in done.errors
