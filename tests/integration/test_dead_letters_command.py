"""`python main.py dead-letters`: found by every filter, shown, counted, exported byte for byte, removed."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from pathlib import Path

import pytest
import redis

from ops.progress import Progress
from redis_client import execute
from schema import Entry, Fate, Reason, Rejection, Settled
from settlement import dead_letter_fields
from tests.commands import Command, commands

FAILED = "mqtt_stream:failed"
ODD = b"\xff\x00\x1b[2J"


@pytest.fixture
def run(redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)  # it takes none
    return commands(None, capsys, monkeypatch)


def letter(
    client: redis.Redis,
    *,
    reason: Reason = Reason.VALUE_NAN,
    device: str = "kitchen",
    sensor: str = "temperature",
    minutes_ago: float = 0,
    fields: tuple[bytes, ...] = (b"value", b"nan"),
) -> str:
    """A letter as a worker writes it, as if so long ago."""
    stream = f"mqtt_stream:{device}:{sensor}".encode()
    rejection = Rejection(reason, "it is none", device, sensor, "nan")
    now_ms = int(time.time() * 1000 - minutes_ago * 60_000)
    made = dead_letter_fields(Settled(Entry(stream, b"1-1", fields), Fate.DEAD_LETTERED, rejection), now_ms)
    found: bytes = execute(client, "XADD", FAILED, f"{now_ms}-*", *made)
    return found.decode()


@pytest.fixture
def four(client: redis.Redis) -> list[str]:
    """Letters that differ in everything, oldest first."""
    return [
        letter(client, minutes_ago=200, device="hall"),
        letter(client, minutes_ago=100, reason=Reason.VALUE_NULL),
        letter(client, minutes_ago=10, sensor="humidity"),
        letter(client, reason=Reason.TOPIC_UNKNOWN, fields=(b"topic", b"a/b", b"payload", ODD)),
    ]


def listed(run: Command, *words: str) -> list[str]:
    done = run("dead-letters", "list", "--json", *words)
    assert done.errors == ""
    return [one["id"] for one in json.loads(done.told)]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), [3, 2, 1, 0]),
        (("--reason", "value_nan"), [2, 0]),
        (("--reason", "value_*"), [2, 1, 0]),
        (("--device", "ha*"), [0]),
        (("--sensor", "hum?dity"), [2]),
        (("--stream", "*:kitchen:temperature"), [3, 1]),
        (("--since", "2h"), [3, 2, 1]),
        (("--until", "2h"), [0]),
        (("--since", "150m", "--until", "30m"), [1]),
        (("--since", "2000-01-01", "--until", "2000-01-02T00:00:00Z"), []),
        (("--device", "kitchen", "--reason", "value_n*", "--since", "1h"), [2]),
        (("--limit", "2"), [3, 2]),
    ],
)
def test_every_filter_finds_what_it_means(
    run: Command, four: list[str], words: tuple[str, ...], wanted: list[int]
) -> None:
    assert listed(run, *words) == [four[number] for number in wanted]


def test_one_is_found_by_its_id_if_the_other_filters_agree(run: Command, four: list[str]) -> None:
    assert listed(run, "--id", four[0], "--id", four[2]) == [four[0], four[2]]
    assert listed(run, "--id", four[0], "--since", "1h") == []


def test_the_table_says_when_there_are_more_and_moves_no_cursor(run: Command, four: list[str]) -> None:
    text = run("dead-letters", "list", "--limit", "3").told
    assert text.splitlines()[0].split() == [
        "letter", "failed", "reason", "device", "sensor", "stream", "value", "replays",
    ]  # fmt: skip
    assert "the newest 3; there are more (--limit N, --all)" in text
    assert "\x1b" not in text
    assert "there are more" not in run("dead-letters", "list", "--all").told
    assert run("dead-letters", "list", "--device", "nobody").told == "no dead letter matches\n"


def test_many_pages_are_read_to_the_end_in_both_directions(run: Command, client: redis.Redis) -> None:
    ids = [letter(client, minutes_ago=1) for _ in range(2_345)]
    assert listed(run, "--all") == ids[::-1]
    done = run("dead-letters", "export")
    assert [json.loads(line)["id"] for line in done.told.splitlines()] == ids


def test_show_tells_every_field_and_what_would_become_of_it(run: Command, four: list[str]) -> None:
    done = run("dead-letters", "show", four[3])
    assert done.status == 0
    assert "\x1b" not in done.told
    assert "payload: \\xff\\x00\\x1b[2J" in done.told
    assert "now            would be rejected again: topic_unknown" in done.told
    missing = run("dead-letters", "show", "1-1")
    assert (missing.status, missing.told) == (1, "")
    assert "there is no dead letter 1-1" in missing.errors


def test_stats_count_by_reason_device_and_stream(run: Command, four: list[str]) -> None:
    found = json.loads(run("dead-letters", "stats", "--json").told)
    assert {reason: one["letters"] for reason, one in found["reasons"].items()} == {
        "value_nan": 2,
        "value_null": 1,
        "topic_unknown": 1,
    }
    assert found["devices"] == {"kitchen": 3, "hall": 1}
    text = run("dead-letters", "stats").told
    assert [line.split()[:2] for line in text.splitlines()[1:2]] == [["value_nan", "2"]]
    assert text.splitlines()[-1].startswith("4 letters, ")


def test_an_export_keeps_every_byte_and_is_its_owners(
    run: Command, four: list[str], tmp_path: Path, client: redis.Redis
) -> None:
    path = tmp_path / "letters.jsonl"
    done = run("dead-letters", "export", "--output", str(path))
    assert (done.status, done.told) == (0, f"4 dead letters are in {path}\n")
    assert path.stat().st_mode & 0o777 == 0o600
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["fields"][0] == ["topic", "a/b"]
    assert base64.b64decode(last["fields"][1][1]["base64"]) == ODD
    again = run("dead-letters", "export", "--output", str(path))
    assert (again.status, again.errors) == (
        1,
        f"sluice: {path} is there already; --replace writes it anew\n",
    )
    assert run("dead-letters", "export", "--output", str(path), "--replace", "--device", "hall").status == 0
    assert len(path.read_text().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]
    nowhere = run("dead-letters", "export", "--output", str(tmp_path / "no" / "x"))
    assert nowhere.status == 1
    assert "cannot write" in nowhere.errors


def test_purge_removes_what_is_meant_and_says_so(
    run: Command, four: list[str], client: redis.Redis
) -> None:
    refused = run("dead-letters", "purge", "--yes")
    assert (refused.status, client.xlen(FAILED)) == (1, 4)
    assert "give a filter, or --all" in refused.errors
    asked = run("dead-letters", "purge", "--reason", "value_nan")
    assert (asked.status, client.xlen(FAILED)) == (1, 4)  # nobody is there to be asked
    assert "2 dead letters: 2 value_nan" in asked.told
    done = run("dead-letters", "purge", "--reason", "value_nan", "--yes")
    assert (done.status, client.xlen(FAILED)) == (0, 2)
    assert "removed 2 dead letters" in done.told
    assert listed(run) == [four[3], four[1]]
    assert run("dead-letters", "purge", "--all", "--yes").status == 0
    assert client.xlen(FAILED) == 0
    assert run("dead-letters", "purge", "--all", "--yes").told == "no dead letter matches\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 4), ("\n", 4), ("", 4)])
def test_on_a_terminal_purge_asks(
    run: Command,
    four: list[str],
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    left: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    done = run("dead-letters", "purge", "--all")
    assert "remove these 4 for good? [y/N] " in done.told
    assert (client.xlen(FAILED), done.status) == (left, 1 if left else 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("list", "--reason", "value_mad"), "it takes a reason or a glob of reasons: no_fields"),
        (("list", "--since", "yesterday"), "a duration such as 90s, 15m, 2h or 7d"),
        (("list", "--since", "1..2h"), "a time such as"),
        (("show",), "LETTER"),
        (("show", "letter"), "the id of a dead letter"),
        (("replay", "--rate", "fast"), "a number"),
        (("replay", "--rate", "-1"), "0 to 1e6"),
        (("list", "--limit", "0"), "a number from 1"),
        (("burn",), "invalid choice"),
    ],
)
def test_wrong_usage_is_exit_2(run: Command, words: tuple[str, ...], told: str) -> None:
    done = run("dead-letters", *words)
    assert done.status == 2
    assert told in done.errors


def test_a_dead_letter_stream_that_is_none_is_said(run: Command, client: redis.Redis) -> None:
    client.set(FAILED, "no stream")
    for action in ("list", "stats", "replay", "export"):
        done = run("dead-letters", action)
        assert done.status == 1
        assert "sluice: Redis refused: ResponseError: WRONGTYPE" in done.errors


def test_none_at_all_is_in_order(run: Command) -> None:
    assert run("dead-letters", "list").told == "no dead letter\n"
    assert run("dead-letters", "stats").told == "no dead letter\n"
    assert run("dead-letters", "replay", "--yes").told == "0 dead letters match\n"
    assert run("dead-letters", "export").told == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_drawn_on_a_terminal_only(terminal: bool) -> None:
    times = iter([0.0, 1.0, 1.0, 1.01])
    out = Terminal() if terminal else io.StringIO()
    with Progress("replaying", 200, out, lambda: next(times)) as progress:
        progress.show(50)
        progress.show(51)  # too soon to be drawn
    drawn = "\r\x1b[Kreplaying [######..................] 50 of 200, 50/s, 3s left\r\x1b[K"
    assert out.getvalue() == (drawn if terminal else "")
