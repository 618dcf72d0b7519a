"""`python main.py series`: what the registry knows, and switching series on and off (docs/alerts.md).

Exit status: 0 done, 1 something is wrong, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from psycopg import sql

import values
from config import Settings
from database import BoundedConnection
from ops import output, session
from ops.globs import is_literal, like
from ops.quantities import finite, number_text
from ops.session import Refused, connected, storable, transaction
from schema import Bad

HEADER = ("device", "sensor", "owner", "unit", "active", "last value", "last time", "age", "first seen")
_MOST = 1_000
# Rows of one transaction: workers that keep the registry wait for these locks.
_STEP = 1_000

_MATCHING = sql.SQL("device_id like %(device)s and sensor_type like %(sensor)s")
_LISTED = sql.SQL(
    """
    {matching} and (not %(inactive)s or not active)
    and (%(stale)s::float8 is null
         or coalesce(last_seen, first_seen) < now() - %(stale)s::float8 * interval '1 second')
    """
).format(matching=_MATCHING)
_LIST = sql.SQL(
    """
    select device_id, sensor_type, owner, unit, active, last_value, last_value_text, last_time,
           extract(epoch from now() - last_seen)::float8, first_seen
    from series where {listed} order by device_id, sensor_type limit %(most)s
    """
).format(listed=_LISTED)
_COUNT = sql.SQL("select count(*) from series where {condition}")
_TO_SWITCH = sql.SQL("{matching} and active <> %(active)s").format(matching=_MATCHING)
# Locked in the order of the key, as workers lock them: in another order the two would deadlock.
_SWITCH = sql.SQL(
    """
    with locked as (
        select device_id, sensor_type from series
        where {to_switch} and (device_id, sensor_type) > (%(after_device)s, %(after_sensor)s)
        order by device_id, sensor_type limit %(step)s for update
    ), switched as (
        update series as s set active = %(active)s from locked as l
        where s.device_id = l.device_id and s.sensor_type = l.sensor_type
        returning s.device_id, s.sensor_type
    )
    select device_id, sensor_type from switched order by device_id desc, sensor_type desc
    """
).format(to_switch=_TO_SWITCH)
_REGISTER = """
    insert into series (device_id, sensor_type, active) values (%(device)s, %(sensor)s, %(active)s)
    on conflict (device_id, sensor_type) do update set active = excluded.active
"""


class Series(NamedTuple):
    """A row of the registry. `age_sec`: since the last reading arrived; None: none ever did."""

    device: str
    sensor: str
    owner: str
    unit: str | None
    active: bool
    last_value: float | None
    last_value_text: str | None
    last_time: datetime | None
    age_sec: float | None
    first_seen: datetime


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Teach the command line `series` and its actions."""
    parser = commands.add_parser("series", help="list series, activate and deactivate them")
    parser.set_defaults(run=main, show_help=parser.print_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="show series and their last values")
    for name in ("device", "sensor"):
        listing.add_argument(f"--{name}", type=storable, default="*", metavar="PATTERN")
    listing.add_argument("--inactive", action="store_true", help="only those switched off")
    listing.add_argument(
        "--stale", type=_seconds, metavar="SEC", help="only those without a reading for SEC (or 5m, 2h, 1d)"
    )
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    listing.add_argument("--all", action="store_true", help=f"more than {_MOST} too")
    for word, what in (("activate", "store readings of"), ("deactivate", "skip readings of")):
        switch = actions.add_parser(word, help=f"{what} these series from now on")
        switch.set_defaults(refuse=switch.error)
        for name in ("device", "sensor"):
            switch.add_argument(
                f"--{name}", type=storable, required=True, metavar="PATTERN", help="* and ? allowed"
            )
        switch.add_argument("--dry-run", action="store_true", help="say how many, change nothing")


def _seconds(text: str) -> float:
    """For argparse: a duration."""
    try:
        found = finite(text, duration=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 <= found <= 1e9:
        raise argparse.ArgumentTypeError(f"is {number_text(found)}; it takes 0 to 1e9 seconds")
    return found


def main(settings: Settings, chosen: argparse.Namespace) -> int:
    """Do what was chosen; the exit status."""
    if chosen.action == "list":
        return session.run(lambda: _list(settings, chosen))
    return session.run(lambda: _switch(settings, chosen, active=chosen.action == "activate"))


def _list(settings: Settings, chosen: argparse.Namespace) -> int:
    parameters: dict[str, Any] = {
        "device": like(chosen.device),
        "sensor": like(chosen.sensor),
        "inactive": chosen.inactive,
        "stale": chosen.stale,
        "most": None if chosen.all else _MOST,
    }
    found = _rows(settings, parameters)
    if chosen.json:
        shown = output.json_array((_object(one) for one in found), sys.stdout)
    else:
        shown = output.table(HEADER, (_cells(one) for one in found), sys.stdout)
        if not shown:
            print("no series matches")
    if shown == _MOST and not chosen.all:
        _tell_rest(settings, parameters)
    return 0


def _rows(settings: Settings, parameters: dict[str, Any]) -> Iterator[Series]:
    """Series; once the last is taken the connection is closed, however long printing takes."""
    with (
        connected(settings) as connection,
        transaction(connection),
        connection.cursor(name="sluice_series") as cursor,
    ):
        cursor.itersize = _STEP
        for row in cursor.execute(_LIST, parameters):
            yield Series(*row)


def _tell_rest(settings: Settings, parameters: dict[str, Any]) -> None:
    with connected(settings) as connection, transaction(connection):
        rest = _count(connection, _LISTED, parameters) - _MOST
    if rest > 0:
        print(f"{rest} more; --all shows them", file=sys.stderr)


def _object(one: Series) -> dict[str, object]:
    last, first = one.last_time, one.first_seen
    return {**one._asdict(), "last_time": last and last.isoformat(), "first_seen": first.isoformat()}


def _cells(one: Series) -> Sequence[str]:
    value = "-" if one.last_value is None else number_text(one.last_value)
    if one.last_value_text is not None:
        value = f'"{output.excerpt(one.last_value_text)}"'
    return (
        one.device,
        one.sensor,
        output.excerpt(one.owner) or "-",
        output.excerpt(one.unit or "-"),
        "yes" if one.active else "no",
        value,
        _moment(one.last_time),
        "-" if one.age_sec is None else _age(one.age_sec),
        _moment(one.first_seen),
    )


def _moment(moment: datetime | None) -> str:
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _age(seconds: float) -> str:
    """About how long ago: `42s`, `3m`, `5h`, `12d`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def _switch(settings: Settings, chosen: argparse.Namespace, *, active: bool) -> int:
    literal = is_literal(chosen.device) and is_literal(chosen.sensor)
    if literal:
        _check_names(chosen)
    parameters = {"device": like(chosen.device), "sensor": like(chosen.sensor), "active": active}
    with connected(settings) as connection:
        with transaction(connection):
            known = _count(connection, _MATCHING, parameters)
            count = _count(connection, _TO_SWITCH, parameters)
        if not known and not literal:
            raise Refused("no series matches; nothing was changed")
        if not chosen.dry_run:
            count = _switched(connection, parameters) if known else _register(connection, chosen, active)
    if known:
        verb = "activate" if active else "deactivate"
        print(f"{f'would {verb}' if chosen.dry_run else f'{verb}d'} {count} of {known} matching series")
    else:
        verb, state = (
            "would register" if chosen.dry_run else "registered",
            "active" if active else "inactive",
        )
        print(f"{verb} device {output.printable(chosen.device)}, sensor {output.printable(chosen.sensor)}")
        print(f"as {state}: no reading of it is known yet")
    return 0


def _check_names(chosen: argparse.Namespace) -> None:
    """A literal name may be registered: it must be one that a reading could have."""
    try:
        values.device_name(chosen.device)
        values.sensor_name(chosen.sensor)
    except Bad as bad:
        chosen.refuse(bad.sentence)


def _switched(connection: BoundedConnection, parameters: dict[str, Any]) -> int:
    """Switch them, some at a time; how many. Cut short, those before are switched: run it again."""
    count, after = 0, ("", "")
    while True:
        page = {**parameters, "after_device": after[0], "after_sensor": after[1], "step": _STEP}
        with transaction(connection):
            rows = connection.execute(_SWITCH, page).fetchall()
        if not rows:
            return count
        count, after = count + len(rows), rows[0]


def _register(connection: BoundedConnection, chosen: argparse.Namespace, active: bool) -> int:
    names = {"device": chosen.device, "sensor": chosen.sensor, "active": active}
    with transaction(connection):
        return connection.execute(_REGISTER, names).rowcount


def _count(connection: BoundedConnection, condition: sql.Composable, parameters: dict[str, Any]) -> int:
    (row,) = connection.execute(_COUNT.format(condition=condition), parameters).fetchall()
    return int(row[0])
