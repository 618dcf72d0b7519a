"""Each benchmark runs, on very little, and tells figures: how fast is nobody's concern here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import redis

from benchmarks import curve, rivals, summary
from tests.support import ROOT, Database

Run = Callable[..., dict[str, Any]]


def run_benchmark(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def figures(redis_url: str, plain_database: Database, tmp_path: Path) -> Run:
    """Runs a benchmark on the servers of the tests; the figures that it writes, by name."""

    def run(name: str, *options: str) -> dict[str, Any]:
        told = tmp_path / f"{name}.json"
        servers = ("--redis-url", redis_url, "--database-url", plain_database.url)
        once = ("--rounds", "1", "--warm-up", "0", "--json", str(told))
        done = run_benchmark(name, *servers, *once, *options)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(told.read_text())["figures"]
        for figure in found:
            assert figure in done.stdout or name == "scale"
        assert plain_database.count() == 0, "a benchmark leaves nothing behind"
        with redis.Redis.from_url(redis_url) as client:
            assert client.dbsize() == 0
        return found

    return run


def medians(found: dict[str, Any], names: Sequence[str]) -> list[float]:
    return [found[name]["median"] for name in names]


def test_throughput_measures_workers_beside_the_limit_hiredis_and_the_bare_loop(figures: Run) -> None:
    found = figures("throughput", "--entries", "400", "--workers", "2", "--no-peers")
    for name in ("flat", "packed"):
        mine, limit, ratio = medians(found, [f"{name}: sluice", f"{name}: limit", f"{name}: of the limit"])
        assert mine > 0
        assert ratio == pytest.approx(mine / limit)
        assert found[f"{name}: hiredis alone"]["median"] > 0
    assert found["flat: CPU of the bare loop's"]["median"] > 0
    assert found["flat: sluice, memory"]["median"] > 10


def test_throughput_measures_the_peers_where_they_are_installed(figures: Run) -> None:
    if not rivals.have_peers():
        pytest.skip("the peers' packages are not installed; python -m benchmarks.throughput does that")
    found = figures("throughput", "--entries", "1000", "--workloads", "flat")
    assert min(medians(found, ["flat: of peer a", "flat: of peer b"])) > 0


def test_redelivery_measures_duplicates_and_bad_rows_against_a_clean_backlog(figures: Run) -> None:
    kinds = ("all duplicates", "1 % bad rows")
    found = figures("redelivery", "--entries", "400", "--kinds", "clean", *kinds)
    for name in kinds:
        mine, clean, ratio = medians(found, [name, "clean", f"{name}: of clean"])
        assert ratio == pytest.approx(mine / clean)


def test_latency_measures_every_rate_and_a_live_stream_beside_a_backlog(figures: Run) -> None:
    found = figures("latency", "--entries", "3000", "--rates", "200", "--seconds", "0.3")
    for name in ("200 readings/s", "beside a backlog"):
        half, most, longest = medians(found, [f"{name}: {cut}" for cut in ("p50", "p99", "longest")])
        assert 0 < half <= most <= longest


def test_scale_measures_both_layouts_and_its_curve_is_a_picture(figures: Run, tmp_path: Path) -> None:
    found = figures("scale", "--entries", "300", "--streams", "100", "--workers", "--idle-sec", "0.1")
    for name in ("100 streams, 100 % active", "100 streams, 1 % active", "100 devices in 64 shards"):
        assert found[name]["median"] > 0
        assert found[f"{name}: new after"]["median"] > 0
    image = tmp_path / "images" / "curve.svg"
    assert curve.main([str(tmp_path / "scale.json"), str(image)]) == 0
    drawn = ET.parse(image).getroot()  # noqa: S314  our own
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 2 * len(curve.STYLES)


def test_the_profile_finds_every_stage_of_the_loop(figures: Run) -> None:
    found = figures("profile", "--entries", "400", "--workloads", "flat")
    for stage in ("read", "parse", "thresholds", "encode", "copy and commit", "ack"):
        assert found[f"flat: {stage}"]["median"] > 0, f"{stage}: mend STAGES in benchmarks/profile.py"
    stages = [one["median"] for one in found.values() if one["unit"] == "us of CPU a reading"]
    assert sum(stages) - found["flat: in all"]["median"] == pytest.approx(
        found["flat: in all"]["median"], rel=0.2
    )


def test_the_table_of_targets_says_what_was_met_what_was_missed_and_what_was_not_measured(
    tmp_path: Path,
) -> None:
    told = {"flat: of the limit": 0.3, "flat: CPU of the bare loop's": 1.5, "packed: of the limit": 0.9}
    figures = {name: {"median": value, "low": value, "high": value} for name, value in told.items()}
    (tmp_path / "throughput.json").write_text(json.dumps({"figures": figures}))
    lines = {line.split(" | ")[0]: line for line in summary.table(summary.figures(tmp_path)).splitlines()}
    assert "missed: 0.75 of it" in lines["| flat, 1 worker, of the COPY limit"]
    assert "| met |" in lines["| flat, CPU a reading, of a bare loop's"]
    assert "| aim met |" in lines["| packed, 1 worker, of the COPY limit"]
    assert "not in this run" in lines["| all duplicates, of clean"]


def test_a_benchmark_refuses_servers_that_hold_something(redis_url: str, plain_database: Database) -> None:
    servers = ("--redis-url", redis_url, "--database-url", plain_database.url)
    plain_database.rows(
        "create table sensor_readings_p20200101 partition of sensor_readings"
        " for values from ('2020-01-01Z') to ('2020-01-02Z')"
    )
    plain_database.rows(
        "insert into sensor_readings (timestamp, device_id, sensor_type, value, message_id)"
        " values ('2020-01-01Z', 'kitchen', 'temperature', 20, gen_random_uuid())"
    )
    done = run_benchmark("redelivery", *servers)
    assert done.returncode == 1
    assert "holds readings" in done.stderr
    assert plain_database.count() == 1
    with redis.Redis.from_url(redis_url) as client:
        client.set("somebody's", "1")
        done = run_benchmark("redelivery", *servers)
        assert client.get("somebody's") == b"1"
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert "Traceback" not in done.stderr
