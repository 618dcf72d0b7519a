"""One run of an operator's command: its connection, and what its errors mean to the caller.

Unlike a worker, a command waits for no server: it says in one line what is wrong, and ends.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import redis

import database
import redis_client
import schema_check
from config import ConfigError, Settings
from database import BoundedConnection
from retry import describe

# One transaction of a command: 100,000 rules take seconds, a busy disk some more.
LONGEST_SEC = 600.0
_REMEDY = "main.py config --changed shows which server is asked, main.py check tries all of them"


class Refused(Exception):
    """Something is wrong, and nothing was changed. The message: what, and the remedy."""


def run(job: Callable[[], int]) -> int:
    """The exit status of `job`, its errors told in one line.

    Raises: `ConfigError` and `SchemaMismatch`, which `main.py` tells; bugs pass.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        status = job()
        sys.stdout.flush()
        return status
    except Refused as refused:
        return complain(str(refused))
    except psycopg.Error as error:
        if error.sqlstate is None and not database.is_world(error):
            raise  # not the server's word: a bug
        if error.sqlstate:
            return complain(f"the database refused: {describe(error)}")
        return complain(f"the database is not usable: {describe(error)}; {_REMEDY}")
    except redis.RedisError as error:
        world = redis_client.is_world(error) and not isinstance(error, redis.AuthenticationError)
        if not world:
            return complain(f"Redis refused: {describe(error)}")
        return complain(f"Redis is not usable: {describe(error)}; {_REMEDY}")
    except BrokenPipeError:
        # Whoever reads has seen enough. Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return complain(f"cannot write: {error}")
    except KeyboardInterrupt:
        return 130


def complain(message: str) -> int:
    """Tell what is wrong; the exit status for it."""
    print(f"sluice: {message}", file=sys.stderr)
    return 1


def storable(text: str) -> str:
    """For argparse: text that the database can be asked about."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it takes UTF-8") from None
    if not text or "\x00" in text:
        raise argparse.ArgumentTypeError("it takes at least one character, and none of them NUL")
    return text


@contextmanager
def connected(settings: Settings) -> Iterator[BoundedConnection]:
    """A connection to a database whose schema fits.

    Raises: `ConfigError` where the address or the password is wrong, `SchemaMismatch`, psycopg errors.
    """
    try:
        connection = database.connect(settings.database_url.get_secret_value(), LONGEST_SEC)
    except psycopg.OperationalError as error:
        if database.is_refused(error):
            raise ConfigError(database.refusal(error)) from None
        raise
    try:
        found = schema_check.look(connection, settings.table_name)
        schema_check.check(found, settings.table_name, enable_timescale=settings.enable_timescale)
        yield connection
    finally:
        connection.close()  # the server undoes what was not committed


def to_redis(settings: Settings) -> redis.Redis:
    """A client that has said something to Redis already. Raises redis errors."""
    client = redis_client.connect(settings.redis_servers(), timeout_sec=30, name="sluice-operator")
    client.ping()
    return client


@contextmanager
def transaction(connection: BoundedConnection, *, keep: bool = True) -> Iterator[None]:
    """One transaction, bounded in time. `keep` False: a dry run, undone at its end.

    Not undone after an error: that ends the command, and with its connection the transaction.
    """
    database.begin(connection, LONGEST_SEC)
    yield
    if keep:
        connection.commit()
    else:
        connection.rollback()
