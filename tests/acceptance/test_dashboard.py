"""The dashboard as people meet it: in Chromium, a process of its own.

Where readings come live, it is fed over MQTT through bridge and worker as processes; where it is only to be
looked at, by a worker's writer in this process.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright
from websockets.sync.client import connect

from standalone.ports import free_port
from tests.broker import Broker, end, running
from tests.forge import Forge
from tests.support import Daemon, Database, is_needed, wait_until
from tests.writing import Rig, batch_of, reading, rig

PASSWORD = "correct horse battery"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# A busy machine is no finding.
expect.set_options(timeout=30_000)
WIDE = ViewportSize(width=1600, height=1000)
PHONE = ViewportSize(width=390, height=844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; none is ever downloaded."""
    found = shutil.which("chromium")
    if found is None:
        reason = "needs chromium (Debian and Ubuntu: apt install chromium)"
        (pytest.fail if is_needed("chromium") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield launched
        launched.close()


class Chain:
    """A dashboard; with `feed`, bridge and worker behind one broker, and a sensor."""

    def __init__(
        self, forge: Forge, folder: Path, database: Database, redis_url: str, broker: Broker
    ) -> None:
        self._forge = forge
        self._folder = folder
        self._broker = broker
        self._sensor: paho.Client | None = None
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._environment = {
            **database.environment(),
            "REDIS_URL": redis_url,
            "MQTT_URL": broker.url(),
            "MQTT_PROTOCOL": "3.1.1",
            "BRIDGE_NAME": f"bridge-{self.port}",  # what another has left in the broker is not its own
            "BATCH_TIMEOUT_SEC": "0.2",
            "DISCOVERY_INTERVAL_SEC": "0.2",
            "DASHBOARD_PORT": str(self.port),
        }
        self.daemons: list[Daemon] = []

    def start(self, command: str, **settings: str) -> Daemon:
        name = f"{command}-{len(self.daemons)}.log"
        daemon = self._forge.start({**self._environment, **settings}, self._folder / name, command)
        self.daemons.append(daemon)
        return daemon

    def feed(self) -> None:
        """Start bridge and worker, together."""
        worker, bridge = self.start("worker"), self.start("bridge")
        worker.wait_for("worker_started", 60)
        bridge.wait_for("mqtt_subscribed", 60)
        self._sensor = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._sensor.connect("127.0.0.1", self._broker.port)
        self._sensor.loop_start()

    def dashboard(self, **settings: str) -> Daemon:
        daemon = self.start("dashboard", **settings)
        daemon.wait_for("dashboard_started", 60)
        return daemon

    def publish(self, topic: str, value: object) -> None:
        assert self._sensor, "nobody feeds this chain"
        self._sensor.publish(f"sensors/{topic}", str(value), qos=1).wait_for_publish(30)

    def close(self) -> None:
        if self._sensor:
            self._sensor.disconnect()
            end(self._sensor)
        for daemon in self.daemons:
            daemon.end()


@pytest.fixture(scope="module")
def one_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running(Broker, tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def bare(
    forge: Forge, tmp_path: Path, database: Database, redis_url: str, one_broker: Broker
) -> Iterator[Chain]:
    """A chain of which nothing runs yet."""
    made = Chain(forge, tmp_path, database, redis_url, one_broker)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def chain(bare: Chain) -> Chain:
    """Only the dashboard runs, until somebody wants to be fed."""
    bare.dashboard()
    return bare


@pytest.fixture
def fed(chain: Chain) -> Chain:
    chain.feed()
    return chain


@pytest.fixture
def writer(database: Database) -> Iterator[Rig]:
    with rig(database) as made:
        made.writer.start()
        yield made


def write(made: Rig, *values: float, device: str = "kitchen", sensor: str = "temperature") -> None:
    """Readings of a series, the last one of now."""
    last_us = time.time_ns() // 1000
    batch = [
        reading(0, value=value, device_id=device, sensor_type=sensor, message_id=uuid4().bytes)._replace(
            timestamp_us=last_us - (len(values) - 1 - number) * 1000
        )
        for number, value in enumerate(values)
    ]
    made.writer.write(batch_of(batch))


@pytest.fixture
def opened(browser: Browser, chain: Chain) -> Iterator[Callable[..., Page]]:
    """Opens pages of which none may meet an error of its own or a resource that is refused."""
    errors: list[str] = []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda said: errors.append(said.text) if "Security Policy" in said.text else None
        )

    def start(path: str = "/", viewport: Any = WIDE, **options: Any) -> Page:
        page = browser.new_page(viewport=viewport, **options)
        watch(page)
        page.goto(chain.address + path)
        expect(page.locator("#link")).to_have_text("Live")
        return page

    yield start
    for context in browser.contexts:
        context.close()
    assert errors == []


def card(page: Page, device: str, sensor: str) -> Any:
    return page.locator(".card", has=page.get_by_text(device, exact=True)).filter(
        has=page.get_by_text(sensor, exact=True)
    )


def value(page: Page, device: str = "kitchen", sensor: str = "temperature") -> Any:
    return card(page, device, sensor).locator(".value")


def test_a_number_that_is_published_is_on_the_page_within_a_second_without_a_reload(
    fed: Chain, opened: Callable[..., Page]
) -> None:
    page = opened()
    expect(page.locator("#cards-empty")).to_contain_text("The first reading will appear here")
    fed.publish("kitchen/temperature", 20.5)
    expect(value(page)).to_have_text("20.5")  # registered, and on the page by itself
    page.evaluate("window.mine = true")
    expect(card(page, "kitchen", "temperature").locator(".unit")).to_have_text("°C")
    took = []
    for number in range(5):
        fed.publish("kitchen/temperature", 30 + number / 10)
        began = time.monotonic()
        expect(value(page)).to_have_text(f"{30 + number / 10:.1f}")
        took.append(time.monotonic() - began)
    assert sorted(took)[2] < 1.0, took
    assert page.evaluate("window.mine") is True
    expect(card(page, "kitchen", "temperature").locator(".age")).to_have_text(re.compile(r"now|\d s ago"))
    expect(page.locator("#focus-value")).to_have_text("30.4")
    expect(page.locator("#devices")).to_contain_text("kitchen")
    expect(page.locator("[data-figure=workers] b")).to_have_text("1")
    assert card(page, "kitchen", "temperature").locator(".stroke").get_attribute("d")


def test_a_page_says_that_it_is_cut_off_and_goes_on_without_a_gap(
    fed: Chain, opened: Callable[..., Page]
) -> None:
    page = opened()
    fed.publish("kitchen/temperature", 1)
    expect(value(page)).to_have_text("1")
    assert fed.daemons[0].terminate() == 0
    expect(page.locator("#banner")).to_contain_text("The dashboard does not answer")
    expect(page.locator("#link")).to_have_text("Disconnected")
    expect(page.locator("body")).to_have_class(re.compile("cut"))
    for number in range(2, 32):
        fed.publish("kitchen/temperature", number)
    fed.dashboard()
    expect(page.locator("#link")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()
    expect(value(page)).to_have_text("31")
    drawn = page.locator(".card .stroke").first

    def points() -> int:
        return (drawn.get_attribute("d") or "").count("L") + 1

    wait_until(lambda: points() == 31, what=f"31 readings in the line, not {points()}")


def test_an_alert_appears_and_is_resolved_by_a_click(
    fed: Chain, opened: Callable[..., Page], database: Database
) -> None:
    database.rows(
        "insert into thresholds (id, device_pattern, sensor_pattern, kind, severity, value)"
        " values ('hot', 'kitchen', 'temperature', 'max', 'critical', 30)"
    )
    page = opened()
    expect(page.locator("#alerts-empty")).to_be_visible()

    def alerted() -> bool:  # the worker may hear of the rule a moment later
        fed.publish("kitchen/temperature", 35)
        return page.locator("#alerts li").count() == 1

    wait_until(alerted, what="an alert on the page")
    shown = page.locator("#alerts li")
    expect(shown).to_contain_text("above 30 °C")
    expect(card(page, "kitchen", "temperature")).to_have_class(re.compile("critical"))
    expect(page).to_have_title("(1) Sluice")
    expect(page.locator("#spoken")).to_contain_text("critical alert: kitchen temperature above 30 °C")
    expect(page.locator("#limits")).to_have_text("max 30")
    shown.get_by_role("button", name=re.compile("Resolve")).click()
    expect(page.locator("#alerts li")).to_have_count(0)
    expect(page.locator("#resolved li")).to_have_count(1)
    assert database.rows("select status from alerts") == [("resolved",)]
    expect(page).to_have_title("Sluice")


def test_a_series_that_has_gone_silent_is_marked(
    chain: Chain, opened: Callable[..., Page], database: Database, writer: Rig
) -> None:
    write(writer, 5)
    page = opened()
    page.clock.install()
    expect(value(page)).to_have_text("5")
    expect(card(page, "kitchen", "temperature")).not_to_have_class(re.compile("stale"))
    database.rows("update sensor_readings set timestamp = timestamp - interval '1 hour'")
    again = opened()
    expect(card(again, "kitchen", "temperature")).to_have_class(re.compile("stale"))
    expect(card(again, "kitchen", "temperature").locator(".mark")).to_have_text("stale")
    expect(card(again, "kitchen", "temperature").locator(".age")).to_have_text("1 h ago")


def test_thousands_of_series_are_searched_and_paged_on_the_server(
    chain: Chain, opened: Callable[..., Page], database: Database
) -> None:
    database.rows(
        "insert into series (device_id, sensor_type) select format('d%s', lpad((n / 4)::text, 4, '0')),"
        " (array['co2', 'light', 'power', 'rssi'])[n % 4 + 1] from generate_series(0, 4999) n"
    )
    page = opened()
    expect(page.locator("#cards-count")).to_have_text("5,000 series")
    expect(page.locator(".card")).to_have_count(24)
    page.get_by_role("button", name="Next page").first.click()
    expect(page.locator(".card .name span").first).to_have_text("d0006")
    assert page.url.endswith("/?page=2")
    page.keyboard.press("/")
    page.keyboard.type("D0777 co")
    expect(page.locator(".card")).to_have_count(1)
    assert "q=D0777%20co" in page.url
    page.keyboard.press("Escape")
    expect(page.locator(".card")).to_have_count(24)
    page.locator("#search").fill("nothing of that name")
    expect(page.locator("#cards-empty")).to_contain_text("No series is called like")


def test_a_phone_shows_everything_without_scrolling_sideways(
    chain: Chain, opened: Callable[..., Page], writer: Rig
) -> None:
    page = opened(viewport=PHONE, has_touch=True, is_mobile=True)
    name = "a-device-with-a-very-long-name-indeed-0123456789"
    for sensor in ("temperature", "a_sensor_with_a_very_long_name_too", "co2"):
        write(writer, 123456.789, device=name, sensor=sensor)
    expect(page.locator(".card")).to_have_count(3)
    page.locator(".card").first.tap()
    expect(page.locator("#focus canvas")).to_be_visible(timeout=10_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for sized in page.locator("button:visible").all():
        box = sized.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]


def test_everything_is_reached_with_the_keyboard_and_seen(
    chain: Chain, opened: Callable[..., Page], writer: Rig
) -> None:
    write(writer, 5)
    page = opened()
    expect(page.locator(".card")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#readings")).to_be_focused()
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.className || document.activeElement.dataset.range")
        )
        if page.evaluate("document.activeElement.matches('.card')"):
            break
    assert {"live", "1h", "24h", "30d", "card"} <= set(seen), seen
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")  # closes the chart of the card that was open
    expect(page.locator("#focus")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#focus")).to_be_visible()
    before = page.evaluate("document.documentElement.dataset.theme")
    page.get_by_role("button", name="Switch between light and dark").press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") != before
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") != before


def test_a_chart_shows_each_range(chain: Chain, opened: Callable[..., Page], writer: Rig) -> None:
    page = opened()
    write(writer, 10, 20)
    expect(page.locator("#focus canvas")).to_be_visible(timeout=15_000)
    for name, spoken in (("1 h", "Chart of 1h"), ("24 h", "Chart of 24h"), ("30 d", "Chart of 30d")):
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator("#chart")).to_have_attribute(
            "aria-label", re.compile(f"{spoken}: from 10 to 20 °C")
        )


def test_the_login_opens_the_page_and_the_logout_closes_it(bare: Chain, browser: Browser) -> None:
    bare.dashboard(DASHBOARD_PASSWORD=PASSWORD)
    page = browser.new_page(viewport=WIDE)
    page.goto(f"{bare.address}/?q=co2")
    expect(page).to_have_title("Log in · Sluice")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_have_text("this is not the password.")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("#link")).to_have_text("Live")
    expect(page.locator("#search")).to_have_value("co2")
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_title("Log in · Sluice")
    page.context.close()


def test_a_dashboard_with_open_pages_stops_in_time_and_in_order(chain: Chain) -> None:
    dashboard = chain.daemons[-1]
    series = "&".join(f"series={n:03}{'%C3%BC' * 40}/{'y' * 60}" for n in range(100))
    with connect(f"ws://127.0.0.1:{chain.port}/ws?{series}") as socket:  # the longest address too
        assert '"history"' in str(socket.recv(10))
        began = time.monotonic()
        dashboard.process.send_signal(signal.SIGTERM)
        assert dashboard.process.wait(20) == 0
        assert time.monotonic() - began < 15
    assert "dashboard_stopped" in dashboard.text()
    assert "crashed" not in dashboard.text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(chain.address)
