"""The dashboard over real HTTP and WebSockets, with a real database and a writer that tells."""

from __future__ import annotations

import functools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from config import ConfigError
from dashboard import patience, routes, watching
from dashboard.access import FREE_TRIES
from dashboard.hub import MOST_QUEUED, Client, Hub, Outbox
from dashboard.server import DashboardServer
from query.options import Tls
from retry import StopFlag
from schema import DAY_US, Reading
from tests.dashboard import Page, Socket, options_for, showing
from tests.querying import at, store, through_proxy
from tests.support import Database, wait_until
from tests.writing import YESTERDAY_US, Rig, batch_of, rig

PASSWORD = "correct horse battery"
TOKEN = "0123456789abcdef"
KITCHEN = "?series=kitchen/temperature"
TEN_MINUTES_US = 600_000_000
MOST_CONNECTIONS = 120  # with ten clients


def now(number: int, value: float | None = None, **changes: Any) -> Reading:
    """As `at`, measured `number` milliseconds after a moment ten minutes ago, in a message of its own."""
    began = int(datetime.now(UTC).timestamp()) * 1_000_000 - TEN_MINUTES_US
    return at(number, value)._replace(timestamp_us=began + number * 1_000)._replace(**changes)


def write(made: Rig, *readings: Reading) -> None:
    made.writer.write(batch_of(readings))


def has_row(found: Socket, value: float) -> bool:
    return any(value in values(rows) for rows in found.of("history"))


def values(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["value"] if row["value"] is not None else row["value_text"] for row in rows]


@pytest.fixture
def writer(database: Database) -> Iterator[Rig]:
    with rig(database) as made:
        yield made


@pytest.fixture
def page(database: Database) -> Iterator[Page]:
    with showing(database) as made:
        yield made


def heard(page: Page, made: Rig, query: str = KITCHEN) -> Socket:
    """A WebSocket that is told of what `made` stores from now on."""
    found = page.socket(query)
    found.wait_for("state", lambda data: data["listening"])
    number = 1_000

    def told() -> bool:
        nonlocal number
        number += 1
        write(made, now(number, -float(number)))
        return bool(found.of("reading"))

    wait_until(told, what="a writer that knows of the dashboard")
    return found


def test_the_last_twenty_rows_of_each_series_come_first_then_each_as_it_is_stored(
    database: Database, page: Page, writer: Rig
) -> None:
    other = [at(n)._replace(sensor_type="door", value=None, value_text="open") for n in range(3)]
    write(writer, *(at(n) for n in range(30)), *other)
    found = page.socket(f"{KITCHEN}&series=kitchen/door&series=nobody/nothing")
    found.wait_for("state")
    assert found.messages[0]["type"] == "history"
    rows = found.messages[0]["data"]
    assert values(rows) == ["open"] * 3 + [float(n) for n in range(10, 30)]
    assert rows[-1] | {"timestamp": ""} == {
        "device_id": "kitchen",
        "sensor_type": "temperature",
        "timestamp": "",
        "value": 29.0,
        "value_text": None,
    }
    assert datetime.fromisoformat(rows[-1]["timestamp"]).tzinfo is not None

    def told() -> bool:
        write(writer, now(len(found.of("reading")) + 1, 42.5))
        return bool(found.of("reading"))

    wait_until(told)
    assert found.of("reading")[0]["value"] == 42.5


def test_a_page_without_names_shows_the_first_24_series_and_says_which(
    database: Database, page: Page, writer: Rig
) -> None:
    write(writer, *(at(1, sensor_type=f"s{n:02}", device_id=f"d{n % 2}") for n in range(50)))
    found = page.socket()
    shown = found.wait_for("page", lambda data: data["total"])
    assert (shown["page"], shown["pages"], shown["total"], len(shown["series"])) == (1, 3, 50, 24)
    assert {row["sensor_type"] for row in found.messages[0]["data"]} == {
        one["sensor_type"] for one in shown["series"]
    }
    last = page.socket("?page=99").wait_for("page")
    assert (last["page"], len(last["series"])) == (3, 2)
    sought = page.socket("?q=D1%20s0").wait_for("page")
    assert [one["sensor_type"] for one in sought["series"]] == ["s01", "s03", "s05", "s07", "s09"]
    assert page.socket("?q=%25").wait_for("page")["total"] == 0


def test_who_turns_to_another_page_has_it_at_once_however_long_looking_takes(
    page: Page, writer: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All open pages are looked at for a twentieth of the time; not so what somebody has just asked for."""
    write(writer, *(now(n, device_id=f"d{n:02}") for n in range(50)))
    page.socket().wait_for("page")
    monkeypatch.setattr(watching, "_SHARE", 1_000_000)
    page.socket().wait_for("page")  # from the next look on, there is none for hours
    for number in (2, 3):
        shown = page.socket(f"?page={number}").wait_for("page")
        assert shown["page"] == number
        assert page.socket(f"?page={number}").wait_for("devices")


def test_a_series_that_is_new_appears_by_itself_with_its_reading(page: Page, writer: Rig) -> None:
    found = page.socket()
    assert found.wait_for("page") == {"page": 1, "pages": 1, "total": 0, "series": []}
    write(writer, now(1, 20.5, sensor_type="co2"))
    shown = found.wait_for("page", lambda data: data["total"] == 1)
    assert shown["series"] == [
        {
            "device_id": "kitchen",
            "sensor_type": "co2",
            "unit": "ppm",
            "unit_known": False,
            "active": True,
        }
    ]
    assert values(found.wait_for("history", len)) == [20.5]
    devices = found.wait_for("devices", lambda data: data["total"])
    assert [(one["device_id"], one["series"]) for one in devices["devices"]] == [("kitchen", 1)]


def test_every_reading_of_a_batch_at_a_time_arrives_while_others_watch_other_things(
    page: Page, writer: Rig
) -> None:
    found, other = heard(page, writer), page.socket("?series=hall/temperature")
    other.wait_for("state")
    for number in range(100):
        write(writer, now(2_000 + number, float(number)))
    wait_until(lambda: [v for v in values(found.of("reading")) if v >= 0] == list(range(100)))
    assert other.of("reading") == []


def test_a_reconnect_replays_what_was_stored_meanwhile(page: Page, writer: Rig) -> None:
    first = heard(page, writer)
    last = first.of("reading")[-1]
    first.close()
    write(writer, *(now(3_000 + n, float(n)) for n in range(60)))
    again = page.socket(f"{KITCHEN}&after={quote(last['timestamp'])}")
    rows = again.wait_for("history")
    assert rows[0]["timestamp"] <= last["timestamp"]
    assert [value for value in values(rows) if value >= 0] == list(range(60))


def test_a_long_gap_is_replayed_to_a_bound(page: Page, writer: Rig) -> None:
    write(writer, *(at(n) for n in range(1_000)))
    after = datetime.now(UTC) - timedelta(days=3)
    rows = page.socket(f"{KITCHEN}&after={quote(after.isoformat())}").wait_for("history")
    assert values(rows) == [float(n) for n in range(800, 1_000)]


def test_a_batch_with_too_many_series_to_be_told_is_read(page: Page, writer: Rig) -> None:
    found = heard(page, writer)
    many = [now(5_000, 7.0, device_id=f"device-with-a-long-name-{n:04}-{'x' * 60}") for n in range(2_000)]
    write(writer, *many, now(5_000, 4711.0))
    wait_until(lambda: any(4711.0 in values(rows) for rows in found.of("history")), what="the row")


def test_a_browser_that_takes_nothing_holds_up_nobody_and_keeps_no_more_than_its_bound(
    page: Page, writer: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    outboxes: list[Outbox] = []
    enter = Hub.enter

    def noting(hub: Hub, client: Client) -> None:
        outboxes.append(client.outbox)
        enter(hub, client)

    monkeypatch.setattr(Hub, "enter", noting)
    names = [f"s{n}" for n in range(50)]
    query = "?" + "&".join(f"series=many/{name}" for name in names)
    with frozen_browser(page, query):
        wait_until(lambda: outboxes, what="the frozen browser")
        lively = heard(page, writer, f"{query}&{KITCHEN[1:]}")
        rounds = 0

        def flood() -> bool:
            nonlocal rounds
            rounds += 1
            text = f"{rounds} ".ljust(190, "x")
            state = now(6_000 + rounds)._replace(device_id="many", value=None, value_text=text)
            write(writer, *(state._replace(sensor_type=name) for name in names))
            return bool(outboxes[0].overtaken)

        wait_until(flood, 60, "a browser that is behind")
        assert len(outboxes[0]) <= MOST_QUEUED
        # The other one was told of each, and asking is answered.
        wait_until(lambda: len({row["value_text"] for row in lively.of("reading")}) >= rounds)
        assert outboxes[1].overtaken == 0
        assert page.http.get("/api/readings?series=many/s1").status_code == 200


@contextmanager
def asking(page: Page, beginning: bytes) -> Iterator[socket.socket]:
    """A connection on which so much was said."""
    with socket.create_connection(("127.0.0.1", page.server.port or 0), timeout=20) as made:
        made.sendall(beginning)
        yield made


def is_over(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def frozen_browser(page: Page, query: str) -> Iterator[None]:
    """A WebSocket whose other end never reads."""
    with socket.socket() as frozen:
        frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        frozen.connect(("127.0.0.1", page.server.port or 0))
        head = (
            f"GET /ws{query} HTTP/1.1",
            f"Host: {page.address}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Version: 13",
            "",
            "",
        )
        frozen.sendall("\r\n".join(head).encode())
        yield


def test_alerts_are_pushed_and_resolved(database: Database, page: Page) -> None:
    found = page.socket()
    assert found.wait_for("alerts") == {"active": [], "active_total": 0, "resolved": []}
    alert = str(uuid.uuid4())
    database.rows(
        "insert into alerts (id, threshold_id, device_id, sensor_type, threshold_type, severity,"
        " threshold_value, status, value, first_time, last_time, created_at)"
        " values (%s, 'rule', 'kitchen', 'co2', 'max', 'critical', 900, 'active', 950, now(), now(),"
        " now())",
        alert,
    )
    (shown,) = found.wait_for("alerts", lambda data: data["active"])["active"]
    assert (shown["id"], shown["kind"], shown["severity"], shown["unit"]) == (
        alert,
        "max",
        "critical",
        "ppm",
    )
    assert (shown["value"], shown["threshold_value"], shown["unit"]) == (950, 900, "ppm")
    answer = page.http.post(f"/api/alerts/{alert}/resolve")
    assert (answer.status_code, answer.json()["data"]["status"]) == (200, "resolved")
    ended = found.wait_for("alerts", lambda data: data["resolved"])
    assert (ended["active"], [one["id"] for one in ended["resolved"]]) == ([], [alert])
    assert page.http.post(f"/api/alerts/{uuid.uuid4()}/resolve").status_code == 404
    wrong = page.http.post("/api/alerts/none/resolve")
    assert (wrong.status_code, wrong.json()["error"]) == (
        400,
        "this is no id of an alert; it takes a UUID",
    )


def test_a_chart_has_its_range_and_the_limits_of_rules(database: Database, page: Page, writer: Rig) -> None:
    database.rows(
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, severity, value) values"
        " ('a', 'kit*', 'temperature', 'max', 'critical', 30), ('b', '*', '*', 'silence', 'warning', 60),"
        " ('c', 'hall', '*', 'min', 'warning', 5)"
    )
    write(writer, now(1, 20.0), now(2, 22.0), now(3)._replace(value=None, value_text="on"))
    live = page.http.get("/api/readings?series=kitchen/temperature").json()
    assert [point[1] for point in live["points"]] == [20.0, 22.0, None]
    assert live["lines"] == [{"kind": "max", "value": 30.0, "severity": "critical"}]
    for span, count in (("1h", 240), ("24h", 288), ("30d", 360)):
        found = page.http.get(f"/api/readings?series=kitchen%2Ftemperature&range={span}").json()
        assert count <= len(found["points"]) <= count + 1
        filled = [point for point in found["points"] if point[1] is not None]
        assert (min(p[2] for p in filled), max(p[3] for p in filled)) == (20.0, 22.0)
    nothing = page.http.get("/api/readings?series=nobody/nothing&range=1h").json()
    assert all(point[1] is None for point in nothing["points"])
    wrong = page.http.get("/api/readings?series=kitchen/temperature&range=1y")
    assert (wrong.status_code, "it takes live, 1h, 24h, 30d" in wrong.json()["error"]) == (400, True)


def test_the_pipeline_is_shown_where_redis_answers(
    database: Database, redis_url: str, client: redis.Redis
) -> None:
    client.xadd("mqtt_stream:shard:1", {"topic": "a", "payload": "b"})
    client.xgroup_create("mqtt_stream:shard:1", "db_writer", "0")
    client.xadd("mqtt_stream:failed", {"error": "x"})
    lease = json.dumps({"host": "here", "pid": 7})
    client.set("sluice:db_writer:worker:one", lease)
    client.set("sluice:db_writer:worker:two", "of another version")
    with showing(database, redis_url=redis_url) as page:
        found = page.socket().wait_for("pipeline")
    assert found["reachable"]
    assert (found["lag"], found["pending"], found["dead_letters"]) == (1, 0, 1)
    assert found["workers"] == [
        {"name": "one", "host": "here", "pid": 7},
        {"name": "two", "host": "", "pid": 0},
    ]


def test_without_redis_the_page_says_so_and_the_rest_works(page: Page, writer: Rig) -> None:
    write(writer, now(1, 21.0))
    found = page.socket()
    assert found.wait_for("pipeline")["reachable"] is False
    assert values(found.wait_for("history", len)) == [21.0]


def test_an_outage_of_the_database_is_told_and_heals_by_itself(database: Database) -> None:
    with through_proxy(database) as (proxy, url), showing(database, url) as page, rig(database) as made:
        found = heard(page, made)
        proxy.refuse = True
        proxy.cut()
        found.wait_for("state", lambda data: not data["database"])
        answer = page.http.get("/api/readings?series=kitchen/temperature")
        assert (answer.status_code, "the database does not answer" in answer.json()["error"]) == (503, True)
        assert page.http.get("/").status_code == 200
        assert page.http.get("/healthz").status_code == 503
        late = page.socket(KITCHEN)
        assert late.wait_for("history") == []
        write(made, now(7_000, 77.0))
        proxy.refuse = False
        wait_until(lambda: found.of("state")[-1]["database"] and found.of("state")[-1]["listening"])
        for one in (found, late):
            wait_until(functools.partial(has_row, one, 77.0))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?series=kitchen", "series is 'kitchen'; it takes device/sensor"),
        ("?page=first", "page is 'first'; it takes the number of a page"),
        ("?after=now", "after is 'now'; it takes a time"),
    ],
)
def test_a_wrong_address_is_told_in_a_sentence_and_closed(page: Page, query: str, sentence: str) -> None:
    found = page.socket(query)
    code, reason = found.wait_closed()
    assert code == 1008
    assert reason.startswith(sentence)
    assert found.of("error")[0]["message"].startswith(sentence)


def test_more_pages_than_allowed_are_told_so(database: Database) -> None:
    with showing(database, clients=2) as page:
        for _ in range(2):
            page.socket().wait_for("history")
        late = page.socket()
        assert late.wait_closed() == (1013, "as many pages are open as DASHBOARD_CLIENTS allows; close one")


def test_who_sends_more_than_a_page_has_to_say_is_cut_off(page: Page) -> None:
    found = page.socket()
    found.wait_for("history")
    found.connection.send("x" * 100_000)
    assert found.wait_closed()[0] == 1009
    assert page.http.get("/healthz").status_code == 200


def test_what_a_page_says_is_thrown_away_whatever_it_is(page: Page) -> None:
    found = page.socket()
    found.wait_for("history")
    with capture_logs() as logs:
        found.connection.send(b"\0\xff")
        found.connection.send("text")
        page.http.get("/healthz")
        assert found.connection.ping().wait(10)
    assert found.closed is None
    assert not [one for one in logs if one["event"] == "request_crashed"]


def test_a_head_without_end_is_cut_off(page: Page) -> None:
    for beginning in (b"GET /login HTTP/1.1\r\nHost: localhost\r\nX: ", b"GET /"):
        with asking(page, beginning) as endless, pytest.raises((ConnectionResetError, BrokenPipeError)):
            endless.sendall(20_000_000 * b"x")
    assert page.http.get("/healthz").status_code == 200


def test_who_asks_nothing_keeps_no_place_from_others(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as held:
        idle = [held.enter_context(asking(page, b"GET / HT")) for _ in range(MOST_CONNECTIONS + 10)]
        assert page.http.get("/healthz").status_code == 200
        wait_until(lambda: is_over(idle[0]), what="the end of the one that waited longest")
        assert not is_over(idle[-1])
    monkeypatch.setattr(patience, "ASK_SEC", 0.5)
    answered = f"GET /healthz HTTP/1.1\r\nHost: {page.address}\r\n\r\nGET".encode()
    for beginning in (b"", answered):
        with asking(page, beginning) as slow:

            def over(slow: socket.socket = slow) -> bool:
                with suppress(OSError):
                    slow.sendall(b"x")  # a byte now and then buys no time
                return is_over(slow)

            wait_until(over, what="the end of who never comes to the point")


def test_a_page_of_another_site_gets_nothing(page: Page) -> None:
    own = {"origin": f"http://{page.address}"}
    with connect(f"ws://{page.address}/ws", additional_headers=own) as socket_:
        assert json.loads(socket_.recv(10))["type"] == "history"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[", "//[::1"):
        with pytest.raises(InvalidStatus) as caught:
            connect(f"ws://{page.address}/ws", additional_headers={"origin": origin})
        assert caught.value.response.status_code == 403
        answer = page.http.post(f"/api/alerts/{uuid.uuid4()}/resolve", headers={"origin": origin})
        assert answer.status_code == 403
    assert page.http.post(f"/api/alerts/{uuid.uuid4()}/resolve", headers=own).status_code == 404


def test_a_name_that_somebody_gave_to_this_address_is_refused_on_loopback(database: Database) -> None:
    with showing(database) as page:
        for host in ("evil.example", f"evil.example:{page.server.port}", "127.0.0.1.evil.example", ""):
            assert page.http.get("/", headers={"host": host}).status_code == 421, host
        for host in (f"localhost:{page.server.port}", "127.0.0.1", "[::1]:8050"):
            assert page.http.get("/", headers={"host": host}).status_code == 200, host
    with showing(database, allowed_hosts=("sluice.example",), password=PASSWORD) as page:
        assert page.http.get("/healthz", headers={"host": "sluice.example"}).status_code == 200
        assert page.http.get("/healthz", headers={"host": "evil.example"}).status_code == 421


def test_without_the_password_nothing_is_answered(database: Database) -> None:
    with showing(database, password=PASSWORD, token=TOKEN) as page:
        answer = page.http.get("/?q=co2")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2F%3Fq%3Dco2")
        for method, path in (
            ("GET", "/api/readings?series=a/b"),
            ("POST", f"/api/alerts/{uuid.uuid4()}/resolve"),
        ):
            refused = page.http.request(method, path)
            assert (refused.status_code, "log in first" in refused.json()["error"]) == (401, True)
        with pytest.raises(InvalidStatus) as caught:
            connect(f"ws://{page.address}/ws")
        assert caught.value.response.status_code == 401
        for wrong in ("Bearer nothing-of-the-sort", f"Bearer {PASSWORD}"):
            assert page.http.get("/", headers={"authorization": wrong}).status_code == 303
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert page.http.get("/", headers=bearer).status_code == 200
        page.socket(additional_headers=bearer).wait_for("history")
        assert page.http.get("/login").status_code == 200
        assert page.http.get("/page/theme.css").status_code == 200


def test_a_login_opens_everything_until_the_logout(database: Database) -> None:
    with showing(database, password=PASSWORD) as page:
        answer = page.http.post("/login", data={"password": PASSWORD})
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="):
            assert part in cookie
        assert page.http.get("/").status_code == 200
        name, value = next(iter(page.http.cookies.items()))
        found = page.socket(additional_headers={"cookie": f"{name}={value}"})
        assert found.wait_for("state")["login"] is True
        with pytest.raises(InvalidStatus):
            connect(f"ws://{page.address}/ws", additional_headers={"cookie": f"{name}={value[:-1]}"})
        assert page.http.post("/logout").headers["location"] == "/login"
        assert page.http.get("/").status_code == 303


def test_guessing_is_slowed_and_the_right_password_waits_too(database: Database) -> None:
    with showing(database, password=PASSWORD) as page:

        def guess(password: str) -> httpx.Response:
            return page.http.post("/login", data={"password": password})

        guessing = [threading.Thread(target=guess, args=("wrong",)) for _ in range(FREE_TRIES)]
        for one in guessing:
            one.start()
        for one in guessing:
            one.join(10)
        late = guess(PASSWORD)
        assert late.status_code == 429
        assert "too many wrong passwords; try again in" in late.json()["error"]
        assert int(late.headers["retry-after"]) >= 1
        wait_until(lambda: guess(PASSWORD).status_code == 200, what="a login after the pause")


def test_of_guesses_that_come_at_once_no_more_are_judged_than_one_by_one(database: Database) -> None:
    with showing(database, password=PASSWORD) as page, ExitStack() as held:
        body = b"password=wrong"
        head = f"POST /login HTTP/1.1\r\nHost: {page.address}\r\nContent-Length: {len(body)}\r\n\r\n"
        guessing = [held.enter_context(asking(page, head.encode() + body[:-1])) for _ in range(30)]
        page.http.get("/healthz")  # which comes after them
        for one in guessing:
            one.sendall(body[-1:])
        statuses = sorted(one.recv(12)[-3:] for one in guessing)
        assert statuses == [b"401"] * FREE_TRIES + [b"429"] * (30 - FREE_TRIES)


def test_a_password_that_never_comes_is_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_BODY_SEC", 0.2)
    with showing(database, password=PASSWORD) as page:
        head = f"POST /login HTTP/1.1\r\nHost: {page.address}\r\nContent-Length: 30\r\n\r\npass"
        with asking(page, head.encode()) as slow:
            assert slow.recv(12) == b"HTTP/1.1 408"


def test_no_password_is_looked_for_in_a_body_without_end(database: Database) -> None:
    with showing(database, password=PASSWORD) as page:
        answer = page.http.post("/login", data={"x": "y" * 100_000, "password": PASSWORD})
        assert answer.status_code == 401


def test_every_answer_forbids_what_a_page_does_not_need(page: Page) -> None:
    for path in ("/", "/healthz", "/page/app.js", "/assets/index.js", "/nothing", "/api/readings"):
        headers = page.http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert "server" not in headers


def test_files_come_packed_and_once(page: Page) -> None:
    first = page.http.get("/assets/index.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    again = page.http.get("/assets/index.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert page.http.get("/page/app.js").headers["content-encoding"] == "gzip"
    for path in ("/page/../server.py", "/page/%2e%2e/server.py", "/assets/../echart.py", "/page/none.js"):
        assert page.http.get(path).status_code == 404


def test_a_page_comes_over_tls(database: Database, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    assert openssl, "the tests of TLS need openssl"
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = Tls(certificate=certificate, key=key)
    with showing(database, tls=tls, password=PASSWORD) as page:
        address = f"https://localhost:{page.server.port}"
        answer = httpx.post(
            f"{address}/login",
            data={"password": PASSWORD},
            verify=ssl.create_default_context(cafile=certificate),
        )
        assert answer.headers["set-cookie"].startswith("__Host-sluice=")
        assert "; Secure" in answer.headers["set-cookie"]
    with pytest.raises(ConfigError, match=r"DASHBOARD_CERTIFICATE is .* which cannot be used"):
        DashboardServer(options_for(database, tls=Tls(certificate=key, key=key)), StopFlag(8.0)).run()


def test_a_port_that_is_taken_is_told_by_name(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"DASHBOARD_PORT are 127.0.0.1:{port}, where this process"):
            DashboardServer(options_for(database, port=port), StopFlag(8.0)).run()


def test_a_wrong_password_of_the_database_is_told_at_the_start(database: Database) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    with showing(database, url) as page:  # away is no reason to end
        assert page.http.get("/healthz").json() == {"database": False}
    unknown = database.url.replace("/sluice_test_", "/no_such_")
    with pytest.raises(ConfigError, match="DATABASE_URL: the server refused it"):
        DashboardServer(options_for(database, unknown), StopFlag(8.0)).run()


def test_what_the_database_refuses_is_told_in_the_log(database: Database, page: Page) -> None:
    database.rows("alter table alerts rename to alerts_kept")
    answer = page.http.post(f"/api/alerts/{uuid.uuid4()}/resolve")
    assert (answer.status_code, "the database refuses" in answer.json()["error"]) == (503, True)


def test_old_rows_and_quiet_series_are_found_too(database: Database, page: Page) -> None:
    old = [at(n)._replace(timestamp_us=YESTERDAY_US - 90 * DAY_US + n) for n in range(5)]
    store(database, [*old, now(1, 1.0)])
    rows = page.socket(KITCHEN).wait_for("history")
    assert values(rows) == [one.value for one in old] + [1.0]


def test_a_bug_is_told_in_the_log_without_what_was_asked(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise KeyError("somebody's data")

    monkeypatch.setattr("dashboard.charts.Charts.chart", bug)
    with capture_logs() as logs:
        assert page.http.get("/api/readings?series=a/b").status_code == 500
        wait_until(lambda: logs, what="a line in the log")  # it comes after the answer
    (told,) = [one for one in logs if one["event"] == "request_crashed"]
    assert told["error"] == "KeyError"
    assert any("routes.py" in where for where in told["where"])
    assert "somebody's data" not in str(told)
    assert page.http.get("/healthz").status_code == 200
