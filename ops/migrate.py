"""Schema changes: what `./migrate.sh` runs. Alembic does the work; this gives it words and exit codes.

Exit status: 0 done or clean, 1 behind, drifted or failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

import config
import database
import models
import schema_check
from alembic import command
from config import ConfigError, Settings
from database import BoundedConnection
from schema_check import SchemaMismatch

ROOT = Path(__file__).resolve().parent.parent
USAGE = """usage: ./migrate.sh COMMAND
  create "MESSAGE"     a new migration, from what models.py and the database differ in
  upgrade [REVISION]   to the newest revision, or to REVISION
  downgrade [N|REV]    N revisions back (default 1), to REV, or to base
  check                exit 1 when the database is behind or differs from models.py
  history              all revisions
  current              the database's revision
  sql                  print the statements of an upgrade from nothing, run none
"""

_PRIMARY_KEY = """
    select array_agg(a.attname::text order by k.ord), array_agg(c.collname::text order by k.ord)
    from pg_index i, unnest(i.indkey) with ordinality k(attnum, ord), pg_attribute a
    left join pg_collation c on c.oid = a.attcollation
    where i.indrelid = to_regclass(quote_ident(:table)) and i.indisprimary
      and a.attrelid = i.indrelid and a.attnum = k.attnum
"""


def alembic_config(settings: Settings) -> Config:
    """Alembic's configuration for these settings; the folder of the program is found from this file."""
    found = Config(str(ROOT / "alembic.ini"), stdout=sys.stdout)
    found.attributes["settings"] = settings
    return found


def _connect(settings: Settings, timeout_sec: float = inf) -> BoundedConnection:
    url, direct_url = settings.database_url.get_secret_value(), settings.direct_url()
    return database.connect_directly(url, direct_url, timeout_sec)


def _engine(settings: Settings) -> sa.Engine:
    """SQLAlchemy over connections of ours: its own addresses know one host only."""
    return sa.create_engine(
        "postgresql+psycopg://", creator=lambda: _connect(settings), poolclass=sa.NullPool
    )


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Raises: `SchemaMismatch` where the newest revision is reached and a worker would refuse it still."""
    command.upgrade(alembic_config(settings), revision)
    _say_where(settings)
    mismatch = _mismatch(settings) if revision == "head" else None
    if mismatch:
        raise SchemaMismatch(mismatch)


def _mismatch(settings: Settings) -> str | None:
    """What a worker with these settings would refuse: another kind of table, another name."""
    if ScriptDirectory.from_config(alembic_config(settings)).get_current_head() != models.REVISIONS[-1]:
        return None  # a migration is being written: workers do not know it yet
    with _connect(settings, timeout_sec=30) as connection:
        found = schema_check.look(connection, settings.table_name)
    try:
        schema_check.check(found, settings.table_name, enable_timescale=settings.enable_timescale)
    except SchemaMismatch as error:
        return str(error)
    return None


def downgrade(settings: Settings, target: str = "1") -> None:
    """`target`: how many revisions back, a revision, or `base`."""
    steps = target.lstrip("-")
    command.downgrade(alembic_config(settings), f"-{steps}" if re.fullmatch(r"\d{1,3}", steps) else target)
    _say_where(settings)


def _say_where(settings: Settings) -> None:
    with _engine(settings).connect() as connection:
        heads = MigrationContext.configure(connection).get_current_heads()
    print(f"The database is at {', '.join(heads) or 'no revision: it holds no table of ours'}.")


def create(settings: Settings, message: str) -> None:
    """Write the next migration. Its name goes into `tables.REVISIONS` by hand: a test reminds."""
    slug = re.sub(r"[^a-z0-9]+", "_", message.lower()).strip("_")[:40]
    revision = f"{len(models.REVISIONS) + 1:04d}_{slug}"
    command.revision(alembic_config(settings), message=message, autogenerate=True, rev_id=revision)
    print(f'Now read alembic/versions/{revision}.py, and add "{revision}" to REVISIONS in tables.py.')


def check(settings: Settings) -> list[str]:
    """What is wrong with the database's schema, a sentence each; empty when it is as it should be."""
    head = ScriptDirectory.from_config(alembic_config(settings)).get_current_head()
    metadata = models.metadata_for(settings.table_name)
    problems: list[str] = []
    with _engine(settings).connect() as connection:
        ours = models.ours(metadata, sa.inspect(connection).get_view_names())
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_object": lambda _o, name, kind, *_: kind != "table" or name in ours,
            },
        )
        found = context.get_current_heads()
        if found != (head,):
            shown = ", ".join(found) or "no revision"
            return [f"the database is at {shown}, the newest is {head}; run ./migrate.sh upgrade"]
        if sa.inspect(connection).has_table(settings.table_name):
            differences = compare_metadata(context, metadata)
            problems = [f"models.py and the database differ: {difference}" for difference in differences]
            problems += _key_drift(connection, settings.table_name)
    mismatch = _mismatch(settings)
    return [mismatch, *problems] if mismatch else problems


def _key_drift(connection: sa.Connection, table: str) -> list[str]:
    """The primary key, its collations and the check: what Alembic does not compare."""
    row = connection.execute(sa.text(_PRIMARY_KEY), {"table": table}).one()
    problems = []
    if tuple(row[0] or ()) != models.KEY:
        problems.append(f"the primary key is {row[0]}, it should be {list(models.KEY)}")
    elif row[1][:2] != ["C", "C"]:
        problems.append(f'device_id and sensor_type have the collations {row[1][:2]}, they should have "C"')
    checks = {constraint["name"] for constraint in sa.inspect(connection).get_check_constraints(table)}
    if f"{table}_one_value" not in checks:
        problems.append(f"the check constraint {table}_one_value is missing")
    return problems


def _check(settings: Settings) -> None:
    problems = check(settings)
    for problem in problems:
        print(f"migrate: {problem}", file=sys.stderr)
    if problems:
        raise SystemExit(1)
    print("The schema is at the newest revision and matches models.py.")


COMMANDS: dict[str, tuple[range, Callable[..., None]]] = {
    "create": (range(1, 2), create),
    "upgrade": (range(2), upgrade),
    "downgrade": (range(2), downgrade),
    "check": (range(1), _check),
    "history": (range(1), lambda settings: command.history(alembic_config(settings), verbose=False)),
    "current": (range(1), lambda settings: command.current(alembic_config(settings))),
    "sql": (range(1), lambda settings: command.upgrade(alembic_config(settings), "head", sql=True)),
}


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(USAGE, end="")
        return 0
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if name not in COMMANDS or len(rest) not in COMMANDS[name][0]:
        print(USAGE, file=sys.stderr, end="")
        return 2
    try:
        settings = config.load()
        COMMANDS[name][1](settings, *rest)
    except ConfigError as error:
        print(error.told("migrate"), file=sys.stderr)
        return 2
    except (CommandError, SchemaMismatch) as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 1
    except sa.exc.DBAPIError as error:
        return _complain(error.orig)
    except psycopg.Error as error:
        return _complain(error)
    return 0


def _complain(error: BaseException | None) -> int:
    print(f"migrate: the database says: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
