"""Schema changes: every command of `./migrate.sh`, and what a worker refuses at its start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory

import config
import models
import schema_check
from config import ConfigError, Settings
from ops import migrate
from schema import Fate
from schema_check import SchemaMismatch
from tests.rollups import upkeep_until
from tests.support import ROOT, Database
from tests.writing import YESTERDAY_US, batch_of, reading, rig

HEAD = models.REVISIONS[-1]
Command = Callable[..., subprocess.CompletedProcess[str]]


def settings(url: str, **changes: Any) -> Settings:
    return config.load(**({"database_url": url, "enable_timescale": False, "retention_days": 0} | changes))


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    return Database(url, timescale=False).rows(query)


def tables(url: str) -> set[str]:
    return {name for (name,) in rows(url, "select tablename from pg_tables where schemaname = 'public'")}


def environment(url: str, **changes: str) -> dict[str, str]:
    ours = {name.upper() for name in Settings.model_fields}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return {**clean, "DATABASE_URL": url, "ENABLE_TIMESCALE": "false", **changes}


def run(url: str, *arguments: str, root: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
    """`./migrate.sh` as a user types it."""
    command = [str(root / "migrate.sh"), *arguments]
    return subprocess.run(
        command, env=environment(url, **changes), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """What `./migrate.sh` does once Python runs, in this process: many cases of one thing are quick so."""

    def run_here(url: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with monkeypatch.context() as changed:
            for name in os.environ.keys() - environment(url).keys():
                changed.delenv(name)
            for name, value in environment(url, **changes).items():
                changed.setenv(name, value)
            status = migrate.main(arguments)
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    return run_here


@pytest.fixture
def url(empty_database: str) -> str:
    return empty_database


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A copy of the program to change."""
    root = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "tests", "__pycache__")
    shutil.copytree(ROOT, root, ignore=ignored)
    yield root
    shutil.rmtree(root)


def test_up_down_to_base_and_up_again(url: str) -> None:
    migrate.upgrade(settings(url))
    assert migrate.check(settings(url)) == []
    assert tables(url) == {"sensor_readings", "alembic_version", *models.BESIDE, *models.ROLLUPS}
    with rig(Database(url, timescale=False)) as one:
        one.writer.write(batch_of([reading(1)]))
    migrate.downgrade(settings(url), "base")
    assert tables(url) == {"alembic_version"}
    assert rows(url, "select * from alembic_version") == []
    migrate.upgrade(settings(url))
    assert migrate.check(settings(url)) == []


def test_each_command_says_what_it_did_and_exits_as_promised(url: str, command: Command) -> None:
    behind = run(url, "check")
    assert (behind.returncode, behind.stderr.strip()) == (
        1,
        f"migrate: the database is at no revision, the newest is {HEAD}; run ./migrate.sh upgrade",
    )
    up = run(url, "upgrade", HEAD)
    assert (up.returncode, up.stdout.strip()) == (0, f"The database is at {HEAD}."), up.stderr
    current = command(url, "current")
    assert (current.returncode, current.stdout.strip()) == (0, f"{HEAD} (head)")
    checked = command(url, "check")
    assert checked.stdout.strip() == "The schema is at the newest revision and matches models.py."
    history = command(url, "history")
    assert history.returncode == 0
    assert HEAD in history.stdout
    down = command(url, "downgrade")
    assert down.returncode == 0
    assert command(url, "downgrade").returncode == (1 if len(models.REVISIONS) == 1 else 0)


def test_upgrading_twice_changes_nothing(url: str) -> None:
    migrate.upgrade(settings(url))
    before = rows(url, "select oid from pg_class where relname = 'sensor_readings'")
    migrate.upgrade(settings(url))
    assert rows(url, "select oid from pg_class where relname = 'sensor_readings'") == before


DAMAGE = {
    "a column dropped": ("alter table sensor_readings drop column metadata", "metadata"),
    "a column added": ("alter table sensor_readings add column site text", "site"),
    "a type changed": ("alter table sensor_readings alter column value type real", "value"),
    "null allowed": (
        "alter table sensor_readings alter column created_at drop not null",
        "created_at",
    ),
    "a default dropped": ("alter table sensor_readings alter column created_at drop default", "created_at"),
    "the primary key dropped": (
        "alter table sensor_readings drop constraint sensor_readings_pkey",
        "the primary key is None",
    ),
    "another primary key": (
        "alter table sensor_readings drop constraint sensor_readings_pkey, add primary key (timestamp)",
        "the primary key is",
    ),
    "the check dropped": (
        "alter table sensor_readings drop constraint sensor_readings_one_value",
        "the check constraint sensor_readings_one_value is missing",
    ),
    "a second index": ("create index extra on sensor_readings (value)", "extra"),
    "the table dropped": ("drop table sensor_readings", "sensor_readings"),
    "another collation": (
        'alter table sensor_readings alter column device_id type varchar(100) collate "default"',
        "collations",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_finds(plain_database: Database, damage: str) -> None:
    statement, word = DAMAGE[damage]
    plain_database.rows(statement)
    problems = migrate.check(settings(plain_database.url))
    assert any(word in problem for problem in problems), problems


def test_check_leaves_other_programs_tables_and_partitions_alone(plain_database: Database) -> None:
    plain_database.rows("create table other_program (id int)")
    with rig(plain_database) as one:
        one.writer.write(batch_of([reading(1)]))
    assert migrate.check(settings(plain_database.url)) == []


def test_four_upgrades_at_once_all_succeed_and_make_one_table(url: str) -> None:
    command = [str(ROOT / "migrate.sh"), "upgrade"]
    running = [
        subprocess.Popen(
            command, env=environment(url), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0, 0], outputs
    assert tables(url) == {"sensor_readings", "alembic_version", *models.BESIDE, *models.ROLLUPS}
    assert rows(url, "select version_num from alembic_version") == [(HEAD,)]


def test_an_upgrade_waits_while_another_session_migrates(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s)", [0x51C1CE00])
        waiting = subprocess.Popen(
            [str(ROOT / "migrate.sh"), "upgrade"],
            env=environment(url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr
        assert waiting.stderr.readline().startswith("Waiting for another migration")
        assert "sensor_readings" not in tables(url)
        other.execute("select pg_advisory_unlock(%s)", [0x51C1CE00])
        waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert "sensor_readings" in tables(url)


def refusal(url: str, table: str = "sensor_readings", *, timescale: bool = False) -> str:
    with (
        rig(Database(url, timescale=timescale), table=table) as one,
        pytest.raises(SchemaMismatch) as refused,
    ):
        one.writer.start()
    return str(refused.value)


def test_a_database_without_schema_is_refused(url: str) -> None:
    assert refusal(url) == (
        f"the database has no schema: found no revision, need {HEAD}; run ./migrate.sh upgrade"
    )


def test_a_database_that_is_behind_is_refused(
    plain_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_check, "REVISIONS", (*models.REVISIONS, "9999_next"))
    assert refusal(plain_database.url) == (
        f"the database is behind: found revision {HEAD}, need 9999_next; run ./migrate.sh upgrade"
    )


def test_a_database_that_is_ahead_is_refused(plain_database: Database) -> None:
    plain_database.rows("update alembic_version set version_num = '9999_next'")
    said = refusal(plain_database.url)
    assert said.startswith(
        f"the database is ahead of this version: found revision 9999_next, need {HEAD}; "
    )
    assert "downgrade" in said


def test_another_table_name_than_it_was_migrated_with_is_refused(plain_database: Database) -> None:
    assert refusal(plain_database.url, "elsewhere") == (
        f"the database is at revision {HEAD} but has no table 'elsewhere'; set TABLE_NAME to the name it "
        "was migrated with"
    )


def test_a_hypertable_is_asked_for_and_the_database_has_partitions(plain_database: Database) -> None:
    said = refusal(plain_database.url, timescale=True)
    assert said.startswith("ENABLE_TIMESCALE is true but 'sensor_readings' is a partitioned table; set ")


def test_partitions_are_asked_for_and_the_database_has_a_plain_table(plain_database: Database) -> None:
    """Without partitions ATTACH fails at the first reading: better refused at the start."""
    plain_database.rows("drop table sensor_readings")
    plain_database.rows("create table sensor_readings (timestamp timestamptz)")
    assert refusal(plain_database.url).startswith("'sensor_readings' is a table without partitions, not")


def found(**changes: Any) -> schema_check.Found:
    plain: dict[str, Any] = {
        "server_version": 180_000,
        "timescale_version": "2.18.0",
        "timescale_license": "timescale",
        "revisions": models.REVISIONS,
        "kind": schema_check.TableKind.HYPERTABLE,
    }
    return schema_check.Found(**(plain | changes))


def test_partitions_are_asked_for_and_the_database_has_a_hypertable() -> None:
    schema_check.check(found(), "t", enable_timescale=True)
    with pytest.raises(SchemaMismatch, match="ENABLE_TIMESCALE is false but 't' is a hypertable; set"):
        schema_check.check(found(), "t", enable_timescale=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server_version": 130_012}, "the server is PostgreSQL 13; 14 is the oldest supported"),
        ({"timescale_version": "2.17.2"}, "TimescaleDB is 2.17.2; 2.18 is the oldest supported"),
        ({"timescale_version": "1.99.0"}, "TimescaleDB is 1.99.0; 2.18"),
    ],
)
def test_servers_that_are_too_old_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        schema_check.check(found(**changes), "t", enable_timescale=True)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("version", ["2.30.0-dev", "2.18.0", "3.0.0"])
def test_newer_servers_are_taken(version: str) -> None:
    schema_check.check(found(timescale_version=version), "t", enable_timescale=True)


@pytest.mark.parametrize("table", ["Readings2", "SELECT", "t" * 52, "_"])
def test_another_table_name_works_for_migrations_writing_and_partitions(url: str, table: str) -> None:
    chosen = settings(url, table_name=table)
    migrate.upgrade(chosen)
    assert migrate.check(chosen) == []
    old = datetime.fromtimestamp(YESTERDAY_US / 1e6, UTC) - timedelta(days=400)

    def count() -> int:
        return int(rows(url, f'select count(*) from "{table}"')[0][0])

    with rig(Database(url, timescale=False), table=table, retention_days=100) as one:
        assert one.writer.start().kind is schema_check.TableKind.PARTITIONED
        batch = batch_of([reading(1), reading(2, timestamp_us=int(old.timestamp()) * 1_000_000)])
        assert {settled.fate for settled in one.writer.write(batch).settled} == {Fate.STORED}
        upkeep_until(one, lambda: count() == 1)
        again = one.writer.write(batch_of([reading(1)], redelivered=True))
    assert again.settled[0].fate is Fate.DUPLICATE
    assert count() == 1
    assert f"{table}_p{datetime.now(UTC):%Y%m%d}" in tables(url)
    migrate.downgrade(chosen, "base")
    assert tables(url) == {"alembic_version"}


@pytest.mark.parametrize(
    "table",
    [
        'x"; drop table sensor_readings; --',
        "x'; drop table sensor_readings; --",
        "public.readings",
        "readings\n",
        "réadings",
        "1readings",
        "r" * 53,
        "%s",
        "{table}",
    ],
)
def test_a_table_name_that_is_no_identifier_is_refused_by_everything(
    plain_database: Database, command: Command, table: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"TABLE_NAME is .* takes a name of letters, digits and underscores"
    ):
        settings(plain_database.url, table_name=table)
    refused = command(plain_database.url, "upgrade", TABLE_NAME=table)
    assert refused.returncode == 2
    assert refused.stderr.startswith("migrate: TABLE_NAME is ")
    assert len(refused.stderr.splitlines()) == 1
    assert "sensor_readings" in tables(plain_database.url)


def test_create_makes_a_migration_from_what_differs(plain_database: Database, copy: Path) -> None:
    url = plain_database.url
    source = copy / "models.py"
    changed = source.read_text().replace(
        'Column("metadata", JSONB()),', 'Column("metadata", JSONB()), Column("site", Text()),'
    )
    source.write_text(changed)
    made = run(url, "create", "Add the site, please!", root=copy)
    assert made.returncode == 0, made.stderr
    revision = f"{len(models.REVISIONS) + 1:04d}_add_the_site_please"
    file = copy / "alembic" / "versions" / f"{revision}.py"
    assert f'add "{revision}" to REVISIONS in tables.py' in made.stdout
    text = file.read_text()
    assert f"down_revision = '{HEAD}'" in text
    assert "op.add_column('sensor_readings', sa.Column('site', sa.Text(), nullable=True))" in text
    assert run(url, "upgrade", root=copy).returncode == 0
    assert run(url, "check", root=copy).returncode == 0
    assert rows(url, "select site from sensor_readings") == []
    assert run(url, "downgrade", "1", root=copy).returncode == 0
    assert migrate.check(settings(url)) == []


def test_the_statements_that_sql_prints_make_a_clean_schema(url: str) -> None:
    printed = run("postgresql://nobody@127.0.0.1:1/none", "sql")
    assert printed.returncode == 0, printed.stderr
    assert "sensor_readings" in printed.stdout
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(printed.stdout.encode())
    assert migrate.check(settings(url)) == []


@pytest.mark.parametrize(
    "arguments",
    [(), ("help",), ("upgrade", "head", "more"), ("create",), ("check", "it"), ("sql", "x")],
)
def test_wrong_usage_is_told_and_exits_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrate.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("usage: ./migrate.sh COMMAND")
    assert said.out == ""


def test_wrong_settings_are_told_in_one_line_and_exit_2(url: str, command: Command) -> None:
    for address, days in (("", "0"), ("mysql://x", "0"), (url, "-1")):
        told = command(address, "upgrade", RETENTION_DAYS=days)
        assert told.returncode == 2
        assert len(told.stderr.splitlines()) == 1
        assert told.stderr.startswith("migrate: ")


@pytest.mark.parametrize("words", [("upgrade",), ("downgrade", "base"), ("check",), ("current",)])
@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1"])
def test_an_unreachable_database_is_told_in_one_line_without_its_password(
    command: Command, words: tuple[str, ...], host: str
) -> None:
    told = command(f"postgresql://sluice:s3cret-word@{host}/none", *words)
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1, told.stderr
    assert told.stderr.startswith("migrate: ")
    assert "s3cret-word" not in told.stderr + told.stdout


def test_as_a_process_it_says_no_more_of_an_unreachable_database() -> None:
    told = run("postgresql://sluice:s3cret-word@127.0.0.1:1/none", "upgrade")
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1, told.stderr
    assert told.stderr.startswith("migrate: ")
    assert "s3cret-word" not in told.stderr + told.stdout


def test_a_revision_that_does_not_exist_is_told_in_one_line(url: str, command: Command) -> None:
    told = command(url, "upgrade", "0815_nothing")
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1, told.stderr
    assert "0815_nothing" in told.stderr


def test_the_revisions_of_models_are_those_of_alembic() -> None:
    script = ScriptDirectory.from_config(migrate.alembic_config(settings("postgresql:///none")))
    newest_first = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(newest_first)) == models.REVISIONS
    files = {path.stem for path in (ROOT / "alembic" / "versions").glob("*.py")}
    assert files == set(models.REVISIONS)
