"""examples/pico-w/main.py against stand-ins of the board's modules; what it publishes, the parser reads."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import config
import wiring
from parse import Parser
from schema import Entry, Parsed

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "pico-w"
NOW = 1_767_323_045


@dataclass
class Board:
    """What the stand-ins share: the weather, the network, the broker, and what was done to them."""

    ticks: int = 0
    year: int = 2021
    wifi: bool = True
    listening: bool = True
    acknowledging: bool = True
    temperature: float = 21.5
    sensor_error: Exception | None = None
    fed: int = 0
    attempts: int = 0
    limits: list[float | None] = field(default_factory=list)
    wills: list[tuple[bytes, bytes, bool, int]] = field(default_factory=list)
    published: list[tuple[bytes, bytes, bool, int]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    pid: int = 0  # where umqtt's counter begins
    pings: int = 0
    station: Any = None

    def step(self, seconds: float = 0.2) -> None:
        self.station.step()
        self.ticks += int(seconds * 1000)

    @property
    def telemetry(self) -> list[tuple[bytes, bytes, bool, int]]:
        return [message for message in self.published if message[0].endswith(b"/telemetry")]


def _modules(board: Board) -> dict[str, ModuleType]:  # noqa: C901  many stand-ins, a line or two each
    class Socket:
        def settimeout(self, limit: float | None) -> None:
            board.limits.append(limit)

        def connect(self, _address: object) -> None:
            if not board.listening:
                raise OSError(111)

        def close(self) -> None: ...

    class Client:
        def __init__(self, client_id: bytes, server: str, **options: object) -> None:
            assert isinstance(client_id, bytes)
            self.sock: Socket | None = None
            self.pid = board.pid

        def set_last_will(self, topic: bytes, msg: bytes, retain: bool = False, qos: int = 0) -> None:
            assert self.sock is None, "a last will is part of CONNECT"
            board.wills.append((topic, msg, retain, qos))

        def connect(self) -> None:
            self.sock = Socket()

        def publish(self, topic: bytes, msg: bytes, retain: bool = False, qos: int = 0) -> None:
            assert isinstance(topic, bytes)
            assert isinstance(msg, bytes)
            self.pid += 1
            if not board.acknowledging:
                raise OSError(110)
            board.pids.append(self.pid)
            board.published.append((topic, msg, retain, qos))

        def ping(self) -> None:
            board.pings += 1

    class Sensor:
        def __init__(self, _pin: object) -> None: ...

        def measure(self) -> None:
            if board.sensor_error:
                raise board.sensor_error

        def temperature(self) -> float:
            return board.temperature

        def humidity(self) -> float:
            return 45.0

    class Wlan:
        def __init__(self, _kind: object) -> None: ...
        def active(self, _on: bool) -> None: ...
        def disconnect(self) -> None: ...
        def isconnected(self) -> bool:
            return board.wifi

        def connect(self, _name: str, _password: str) -> None:
            board.attempts += 1

    class Watchdog:
        def __init__(self, timeout: int) -> None:
            assert timeout <= 8388, "the most that an RP2040 takes"

        def feed(self) -> None:
            board.fed += 1

    def settime() -> None:
        board.year = 2026

    parts: dict[str, dict[str, object]] = {
        "time": {
            "time": lambda: NOW + board.ticks // 1000,
            "gmtime": lambda seconds=None: (1970 if seconds == 0 else board.year,),
            "ticks_ms": lambda: board.ticks,
            "ticks_add": lambda ticks, more: ticks + more,
            "ticks_diff": lambda one, other: one - other,
        },
        "socket": {"socket": Socket, "getaddrinfo": lambda host, port: [(0, 0, 0, "", (host, port))]},
        "dht": {"DHT22": Sensor},
        "machine": {"WDT": Watchdog, "Pin": lambda number: number},
        "network": {"WLAN": Wlan, "STA_IF": 0},
        "ntptime": {"settime": settime},
        "umqtt": {},
        "umqtt.simple": {"MQTTClient": Client},
    }
    found = {}
    for name, members in parts.items():
        found[name] = ModuleType(name)
        found[name].__dict__.update(members)
    found["config"] = _loaded("config_example.py")
    return found


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), FOLDER / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    found = Board()
    with monkeypatch.context() as patched:
        for name, module in _modules(found).items():
            patched.setitem(sys.modules, name, module)
        found.station = _loaded("main.py").Station()
    return found


def _parsed(topic: bytes, payload: bytes) -> Parsed:
    limits = wiring.limits(config.load_edge())
    entry = Entry(b"mqtt_stream:shard:0", b"1-0", (b"topic", topic, b"payload", payload))
    return Parser(limits).parse(entry, (NOW + 3600) * 1_000_000)


def test_what_it_publishes_is_stored_with_its_own_time_under_the_default_settings(board: Board) -> None:
    board.step()
    board.step()
    ((topic, payload, retained, qos),) = board.telemetry
    assert (retained, qos) == (False, 1)
    parsed = _parsed(topic, payload)
    assert not parsed.rejections
    assert [(*reading[:3], reading.value) for reading in parsed.readings] == [
        ("pico-1", "temperature", NOW * 1_000_000, 21.5),
        ("pico-1", "humidity", NOW * 1_000_000, 45.0),
    ]


def test_it_says_that_it_is_online_and_leaves_a_last_will_that_says_the_opposite(board: Board) -> None:
    board.step()
    (will,) = board.wills
    online = board.published[0]
    assert will[2:] == online[2:] == (True, 1)
    said = [_parsed(topic, payload).status for topic, payload, *_ in (online, will)]
    assert [(status.device_id, status.online) for status in said if status] == [
        ("pico-1", True),
        ("pico-1", False),
    ]


def test_nothing_is_measured_before_the_time_is_known(board: Board) -> None:
    board.wifi = False
    for _ in range(10):
        board.step(30)
    board.wifi = True
    board.step()
    assert not board.telemetry
    board.step()
    assert len(board.telemetry) == 1


def test_readings_wait_for_their_acknowledgement_and_are_sent_in_order(board: Board) -> None:
    board.step()
    board.acknowledging = False
    for _ in range(4):
        board.step(31)
    assert not board.telemetry
    board.acknowledging = True
    for _ in range(3):
        board.step(6)
    times = [_parsed(*message[:2]).readings[0].timestamp_us for message in board.telemetry]
    assert len(times) >= 4
    assert times == sorted(set(times))


def test_a_broker_that_does_not_listen_costs_neither_the_queue_nor_a_restart(board: Board) -> None:
    board.listening = False
    for _ in range(20):
        fed = board.fed
        board.step(31)
        assert board.fed > fed
    assert not board.published
    board.listening = True
    board.step(6)
    assert len(board.telemetry) == 20


def test_a_full_queue_drops_the_oldest_reading(board: Board) -> None:
    board.step()
    board.wifi = False
    for number in range(200):
        board.temperature = float(number % 80)
        board.step(31)
    board.wifi = True
    board.step(6)
    assert len(board.telemetry) == 120
    assert _parsed(*board.telemetry[-1][:2]).readings[0].value == 199 % 80


@pytest.mark.parametrize("error", [OSError(110), Exception("checksum error")])
def test_a_sensor_that_fails_is_tried_again_at_the_next_interval(board: Board, error: Exception) -> None:
    board.step()
    board.sensor_error = error
    board.step(31)
    board.sensor_error = None
    assert not board.telemetry
    board.step()
    assert len(board.telemetry) == 1


def test_every_publication_has_a_time_limit_and_a_packet_id_of_16_bits(board: Board) -> None:
    board.pid = 64_999  # after weeks
    for _ in range(6):
        board.step(31)
    assert len(board.telemetry) >= 4
    assert board.pids[:3] == [65_000, 1, 2]
    # once for the knock at the door, and once before each publication
    assert len(board.limits) == len(board.published) + 1
    assert all(limit == 5 for limit in board.limits)


def test_an_idle_connection_is_kept_alive_and_wifi_is_sought_at_intervals(board: Board) -> None:
    board.step()
    board.sensor_error = OSError(110)
    for _ in range(10):
        board.step(31)
    assert board.pings >= 9
    board.wifi = False
    for _ in range(50):
        board.step(1)
    assert 2 <= board.attempts <= 4


def test_it_uses_nothing_that_the_board_does_not_have() -> None:
    source = (FOLDER / "main.py").read_text(encoding="utf-8")
    compile(source, "main.py", "exec")
    assert not any(
        word in source for word in ("from __future__", "import typing", "import logging", "match ")
    )
