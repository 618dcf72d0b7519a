"""Publishes what a DHT22 measures from a Raspberry Pi Pico W, over MQTT with QoS 1 (MicroPython).

Copy to the board as `main.py`, beside `config.py` (see config_example.py). README.md has the rest.
"""

import socket
import time

import dht
import machine
import network
import ntptime
from umqtt.simple import MQTTClient

import config

WATCHDOG_MS = 8000  # the RP2040 counts to 8,388 at most
SOCKET_S = 5  # shorter than the watchdog: a broker that is silent costs a connection, not a restart
WIFI_MS = 20_000  # between two attempts
RETRY_MS = 5_000  # between two attempts at the broker or the time
CLOCK_MS = 6 * 3600 * 1000
KEEPALIVE_S = 60
PING_MS = 30_000
MOST_QUEUED = 120
OLDEST_YEAR = 2024  # before the first NTP answer the clock says something older
LAST_PACKET_ID = 65_000


class Station:
    """Measures at an interval, and keeps readings until the broker has acknowledged them.

    `step` does what is due and returns within the watchdog's time, whatever the network does; if it ever
    does not, the board restarts, and the readings in memory are lost.
    """

    def __init__(self):
        self._watchdog = machine.WDT(timeout=WATCHDOG_MS)
        self._wlan = network.WLAN(network.STA_IF)
        self._wlan.active(True)
        self._sensor = dht.DHT22(machine.Pin(config.PIN))
        self._topic = b"devices/" + config.DEVICE_ID.encode() + b"/telemetry"
        self._status = b"devices/" + config.DEVICE_ID.encode() + b"/status"
        # time.time() counts from 1970 on the Pico, from 2000 on some other boards.
        self._epoch = 946_684_800 if time.gmtime(0)[0] == 2000 else 0
        self._client = None
        self._queue = []
        self._due = {}  # what is not done before when, in ticks
        ntptime.host = config.NTP_HOST
        ntptime.timeout = 2

    def step(self):
        """One round: measure if it is time, see to the connections, send what is queued."""
        self._watchdog.feed()
        if self._is_due("measure") and self._clock_is_set():
            self._later("measure", config.INTERVAL_S * 1000)
            self._measure()
        if not self._wlan.isconnected():
            self._close()
            if self._is_due("wifi"):
                self._later("wifi", WIFI_MS)
                self._wlan.disconnect()
                self._wlan.connect(config.WIFI_SSID, config.WIFI_PASSWORD)
            return
        if self._is_due("clock"):
            self._set_clock()
        if self._client is None and self._is_due("broker"):
            self._later("broker", RETRY_MS)
            self._connect()
        if self._client is not None:
            self._send_queue()

    def _measure(self):
        try:
            self._sensor.measure()
            temperature, humidity = self._sensor.temperature(), self._sensor.humidity()
        except Exception as error:  # a checksum that is wrong comes as a bare Exception
            print("sensor:", error)
            return
        if not (-40 <= temperature <= 80 and 0 <= humidity <= 100):
            print("sensor: out of range", temperature, humidity)
            return
        # Whole seconds: floats have 24 bits here. The text stays the same when it is sent again, which is
        # how a second delivery is recognised.
        payload = '{"ts": %d, "values": {"temperature": %.1f, "humidity": %.1f}}' % (
            time.time() + self._epoch,
            temperature,
            humidity,
        )
        if len(self._queue) >= MOST_QUEUED:
            self._queue.pop(0)
            print("queue full: the oldest reading is dropped")
        self._queue.append(payload.encode())

    def _connect(self):
        """Connect, with a last will, and say `online`."""
        # len() of a str counts characters where MQTT wants bytes: umqtt gets bytes only.
        client = MQTTClient(
            config.DEVICE_ID.encode(),
            config.BROKER,
            port=config.PORT,
            user=config.USER.encode(),
            password=config.PASSWORD.encode(),
            keepalive=KEEPALIVE_S,
        )
        client.set_last_will(self._status, b"offline", retain=True, qos=1)
        try:
            self._knock()
            self._watchdog.feed()
            client.connect()  # has no time limit of its own: here the watchdog is it
            self._client = client
            self._publish(self._status, b"online", retain=True)
        except Exception as error:
            self._lost(error)

    def _knock(self):
        """Raises OSError in time where nothing listens, so that the watchdog does not empty the queue."""
        self._watchdog.feed()
        address = socket.getaddrinfo(config.BROKER, config.PORT)[0][-1]
        door = socket.socket()
        try:
            door.settimeout(SOCKET_S)
            door.connect(address)
        finally:
            door.close()

    def _send_queue(self):
        """Send the oldest first; each leaves the queue after its PUBACK."""
        try:
            while self._queue:
                self._publish(self._topic, self._queue[0])
                self._queue.pop(0)
            if self._is_due("ping"):
                self._later("ping", PING_MS)
                self._client.ping()  # its answer is read by the next publication
        except Exception as error:
            self._lost(error)

    def _publish(self, topic, payload, retain=False):
        """QoS 1: returns after the PUBACK, raises where it does not come in time."""
        self._watchdog.feed()
        if self._client.pid >= LAST_PACKET_ID:
            self._client.pid = 0  # umqtt counts past 65,535, and then waits for a PUBACK that never comes
        # Again before each publication: umqtt switches the limit off whenever it has read something.
        self._client.sock.settimeout(SOCKET_S)
        self._client.publish(topic, payload, retain, 1)
        self._later("ping", PING_MS)

    def _lost(self, error):
        # Of any type: umqtt raises OSError, MQTTException, AssertionError, and TypeError on half a packet.
        print("broker:", repr(error))
        self._close()

    def _close(self):
        client, self._client = self._client, None
        if client is not None and client.sock is not None:
            client.sock.close()  # without a DISCONNECT, so that the broker publishes the last will

    def _set_clock(self):
        try:
            self._watchdog.feed()
            ntptime.settime()
            self._later("clock", CLOCK_MS)
        except Exception as error:  # OSError; OverflowError where the answer is no time
            print("time:", error)
            self._later("clock", RETRY_MS)

    @staticmethod
    def _clock_is_set():
        return time.gmtime()[0] >= OLDEST_YEAR

    def _is_due(self, name):
        return name not in self._due or time.ticks_diff(time.ticks_ms(), self._due[name]) >= 0

    def _later(self, name, milliseconds):
        self._due[name] = time.ticks_add(time.ticks_ms(), milliseconds)


def main():
    station = Station()
    while True:
        station.step()
        time.sleep_ms(200)


if __name__ == "__main__":
    main()
