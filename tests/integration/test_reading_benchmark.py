"""The benchmark of reading back runs, and measures what it says, with few readings and few calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import reading, reading_data
from tests.support import Database


# A worker that is timed leaves the pipe of its log to be closed by whoever collects it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_benchmark_of_reading_back_prints_its_figures(
    database: Database,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = tmp_path / "figures.json"
    monkeypatch.setattr(reading_data, "DAYS", 1)
    few = "--rows 10000 --rounds 1 --calls 5 --bucket-calls 2 --seconds 0.2 --entries 500"
    servers = ["--database-url", database.url, "--redis-url", redis_url, "--json", str(told)]
    monkeypatch.setattr("sys.argv", ["reading", *few.split(), *servers])
    assert reading.main() == 0
    assert database.count() == 10_000
    figures = {one["name"]: one for one in json.loads(told.read_text())}
    printed = capsys.readouterr().out
    for name, unit in (
        ("latest of a device, gRPC, p99", "ms"),
        ("latest of a device, gRPC of SQL", "times"),
        ("24 h by minutes, gRPC of SQL on readings", "times"),
        ("90 d by hours, gRPC of SQL on readings", "times"),
        ("latest, 10 clients at once", "calls/s"),
        ("ingest, asked of not asked", "times"),
    ):
        assert name in printed
        assert (figures[name]["unit"], figures[name]["median"] > 0) == (unit, True)
