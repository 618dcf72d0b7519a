"""How soon a reading is on the screen: from the sensor's PUBLISH, over everything there is, to the page.

    .venv/bin/python -m benchmarks.screen [--rate N] [--seconds N] [--series N] [--pages N] [--browser PATH]
                                          [--mqtt-url …] [--redis-url …] [--database-url …]

Broker, bridge, Redis, worker, database and dashboard run as users run them, each a process of its own, with
durable servers. Messages of one reading go out at a steady rate over some series, QoS 1. Each is timed from
before it is handed to the MQTT client until a WebSocket of the dashboard has brought it (`--pages` are
open, one is timed), and, where there is a Chromium, until it stands in the page that Chromium shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import Page, sync_playwright
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import config
import log
from benchmarks.bench import servers
from benchmarks.telling import at_rate
from mqtt.options import MqttOptions
from ops import migrate
from standalone.children import Child
from standalone.mqtt_broker import MqttBroker
from standalone.ports import free_port

FIRST = 100_000  # the first value: no other number of the page is as long
_SETTLE_SEC = 2.0
CHROMIUM = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Every number of six digits that the page comes to show, and when, by the machine's clock.
_OBSERVE = """
    (first) => {
        window.shown = {};
        const look = (node) => {
            const digits = (node.textContent || "").replace(/[^0-9]/g, "");
            if (digits.length === 6 && +digits >= first && !(digits in window.shown)) {
                window.shown[digits] = performance.timeOrigin + performance.now();
            }
        };
        new MutationObserver((changes) => {
            for (const change of changes) {
                look(change.target);
                change.addedNodes.forEach(look);
            }
        }).observe(document.body, { subtree: true, childList: true, characterData: true });
    }
"""


@contextlib.contextmanager
def chain(mqtt_url: str | None, redis_url: str, database_url: str) -> Iterator[tuple[str, str]]:
    """Bridge, worker and dashboard: the addresses of the broker and of the dashboard."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        protocol = os.environ.get("MQTT_PROTOCOL", "5")
        if mqtt_url is None:
            broker = MqttBroker(home / "mqtt")
            broker.start()
            stack.callback(broker.stop)
            mqtt_url, protocol = broker.url, MqttBroker.protocol
        port = free_port()
        environment = {
            **os.environ,
            "MQTT_URL": mqtt_url,
            "MQTT_PROTOCOL": protocol,
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "BRIDGE_NAME": "bench-screen",
            "DASHBOARD_HOST": "127.0.0.1",
            "DASHBOARD_PORT": str(port),
        }
        for command, ready in (
            ("worker", "worker_started"),
            ("bridge", "mqtt_subscribed"),
            ("dashboard", "dashboard_started"),
        ):
            child = Child(command, home, environment, command)
            stack.callback(child.end)
            if not child.wait_for(ready, 30):
                raise SystemExit(f"the {command} did not start:\n{child.said()}")
        yield mqtt_url, f"127.0.0.1:{port}"


class Publisher:
    """Publishes numbers that count up, each to the next series; remembers when."""

    def __init__(self, url: str, series: int) -> None:
        options = MqttOptions(url=url, client_id="bench-screen-sensor")
        self._series = series
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client.connect(*options.address)
        self._client.loop_start()
        self.published: dict[int, tuple[float, float]] = {}  # monotonic and Unix seconds

    def publish(self, value: int) -> None:
        self.published[value] = time.perf_counter(), time.time()
        self._client.publish(f"sensors/screen-{value % self._series}/count", str(value), qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Watcher:
    """A WebSocket of the dashboard, in a thread of its own; remembers when it got what."""

    def __init__(self, address: str, series: int) -> None:
        shown = "&".join(f"series={quote(f'screen-{n}')}/count" for n in range(series))
        self._socket = connect(f"ws://{address}/ws?{shown}", max_size=None)
        self.got: dict[int, float] = {}
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for message in self._socket:
                now = time.perf_counter()
                told = json.loads(message)
                if told["type"] == "reading":
                    self.got.setdefault(int(told["data"]["value"]), now)

    def close(self) -> None:
        self._socket.close()
        self._thread.join()


@contextlib.contextmanager
def browser_page(path: str | None, address: str) -> Iterator[Page | None]:
    """A page of a Chromium that watches what it shows; None where there is no Chromium."""
    if path is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM))
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.goto(f"http://{address}/")
        page.get_by_text("screen-0").first.wait_for()
        page.evaluate(_OBSERVE, FIRST)
        yield page
        browser.close()


def tell(name: str, took: Sequence[float], sent: int) -> dict[str, float]:
    """`took` in seconds. What was not seen was overtaken by a newer value of its series, or lost."""
    if len(took) < 2:
        raise SystemExit(f"{name}: nothing arrived")
    milliseconds = sorted(1000 * one for one in took)
    cuts = statistics.quantiles(milliseconds, n=100)
    print(
        f"{name}: {len(took):,} of {sent:,} readings; p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms,"
        f" longest {milliseconds[-1]:.1f} ms"
    )
    return {
        "seen": len(took),
        "sent": sent,
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "max_ms": milliseconds[-1],
    }


def measure(chosen: argparse.Namespace, mqtt_url: str, address: str) -> dict[str, dict[str, float]]:
    publisher = Publisher(mqtt_url, chosen.series)
    watchers = []
    try:
        for value in range(FIRST - chosen.series, FIRST):
            publisher.publish(value)  # so that each series is registered, and on the page
        time.sleep(_SETTLE_SEC)
        watchers = [Watcher(address, chosen.series) for _ in range(chosen.pages)]
        with browser_page(chosen.browser, address) as page:
            warm = FIRST + chosen.rate * 2
            at_rate(publisher.publish, FIRST, chosen.rate, chosen.seconds + 2)
            time.sleep(_SETTLE_SEC)
            shown = page.evaluate("window.shown") if page else {}
    finally:
        for watcher in watchers:
            watcher.close()
        publisher.close()
    sent = {value: when for value, when in publisher.published.items() if value >= warm}
    got = [watchers[0].got[value] - when for value, (when, _) in sent.items() if value in watchers[0].got]
    found = {"websocket": tell("sensor to WebSocket", got, len(sent))}
    if shown:
        seen = [shown[str(value)] / 1000 - when for value, (_, when) in sent.items() if str(value) in shown]
        found["page"] = tell("sensor to screen (Chromium)", seen, len(sent))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=int, default=100, help="messages a second")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--series", type=int, default=20, help="at most 24: what the first page shows")
    parser.add_argument("--pages", type=int, default=5)
    parser.add_argument("--browser", default=shutil.which("chromium"), help="a Chromium")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--mqtt-url")
    parser.add_argument("--redis-url")
    parser.add_argument("--database-url", help="an empty database")
    chosen = parser.parse_args()
    log.configure("warning", "console")
    with servers(chosen.redis_url, chosen.database_url) as (redis_url, database_url):
        migrate.upgrade(config.load(database_url=database_url))
        with chain(chosen.mqtt_url, redis_url, database_url) as (mqtt_url, address):
            print(f"{chosen.rate} messages/s over {chosen.series} series, {chosen.pages} WebSockets open")
            found = measure(chosen, mqtt_url, address)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
