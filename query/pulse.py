"""Whether the database answers, asked all the time: what the health service says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import structlog

import database
import metrics
import schema_check
from config import ConfigError
from database import BoundedConnection
from metrics import Sample
from progress import Progress
from retry import StopFlag, describe
from schema_check import SchemaMismatch
from signs import OK

_BEAT_SEC = 1.0
_ANSWER_SEC = 3.0
LONGEST_BEAT_SEC = 30.0  # connecting to a host that has several addresses, and a few questions


class Pulse:
    """Belongs to the thread that calls `run`; `answers` may be asked from any.

    `on_change` is called with whether the database answers now, and has the schema that is needed. `name`:
    of the service, in its log.
    """

    def __init__(
        self,
        url: str,
        table: str,
        stop: StopFlag,
        on_change: Callable[[bool], None],
        *,
        enable_timescale: bool,
        name: str = "query",
    ) -> None:
        self._url = url
        self._table = table
        self._enable_timescale = enable_timescale
        self._stop = stop
        self._on_change = on_change
        self._name = name
        self._connection: BoundedConnection | None = None
        self._reason = ""
        self._mismatch = ""  # what is wrong with the schema
        self.answers = False
        self.progress = Progress()

    def run(self) -> None:
        """Returns after a stop. Raises what is no outage."""
        while not self._stop.is_set():
            self.progress.made()
            self._beat()
            self.progress.made()
            self._stop.pause(_BEAT_SEC)
        self.close()

    def check(self) -> dict[str, str]:
        """As `readiness` has it, from the last beat. From any thread."""
        if self.answers:
            return {"database": OK, "schema": OK}
        if self._mismatch:
            return {"database": OK, "schema": self._mismatch}
        return {"database": "no answer", "schema": "unknown"}

    def samples(self) -> Iterator[Sample]:
        yield metrics.ANSWERS, (), int(self.answers)

    def first(self) -> None:
        """Before `run`: what no waiting mends is told whoever starts the process, not everybody who asks.

        Raises: `ConfigError` where the database refuses for good, `SchemaMismatch`. For one that is away
        `run` waits.
        """
        try:
            self._ask()
        except psycopg.Error as error:
            if database.is_refused(error):
                raise ConfigError(database.refusal(error)) from None
            if not database.is_world(error):
                raise
        else:
            self._change(True, "")

    def _beat(self) -> None:
        try:
            self._ask()
        except SchemaMismatch as mismatch:
            self.close()
            self._mismatch = str(mismatch)
            self._change(False, str(mismatch))
        except psycopg.Error as error:
            self.close()
            if not database.is_world(error):
                raise
            self._mismatch = ""
            self._change(False, describe(error))
        else:
            self._change(True, "")

    def _ask(self) -> None:
        if self._connection is None:
            self._connection = database.connect(self._url, _ANSWER_SEC)
            self._connection.autocommit = True
            found = schema_check.look(self._connection, self._table)
            schema_check.check(found, self._table, enable_timescale=self._enable_timescale)
        database.start_clock(self._connection, _ANSWER_SEC)
        self._connection.execute("select 1")

    def _change(self, answers: bool, reason: str) -> None:
        if (answers, reason) == (self.answers, self._reason):
            return
        self.answers, self._reason = answers, reason
        if answers:
            structlog.get_logger().info(f"{self._name}_serving")
        else:
            structlog.get_logger().warning(f"{self._name}_not_serving", reason=reason)
        self._on_change(answers)

    def close(self) -> None:
        """For who does not call `run` after `first`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
