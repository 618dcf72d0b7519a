"""How fast one bridge carries a backlog, beside paho receiving the same messages and discarding them.

    .venv/bin/python -m benchmarks.bridge [--messages N] [--rounds N] [--protocol 3.1.1] [--layout series]

Needs mosquitto on the PATH: it keeps the backlog, one session for each of the two. Each round, in turn:

- bridge: `main.py bridge`, from its first entry in Redis until the last one;
- paho: a client with QoS 1 that acknowledges by itself and throws everything away, from its first message
  until the last.

Both are kept on one core, with the servers on the others. Prints messages a second by the clock and by the
process's own CPU time, each as the median of the rounds with its spread, and the medians of the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import redis
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.office import temperatures
from mqtt.options import MqttOptions, Session
from standalone.ports import free_port
from standalone.servers import Valkey

ROOT = Path(__file__).resolve().parent.parent
FILTER = "devices/+/telemetry"
DEVICES = 1000
START_MS = 1_767_225_600_000
IN_FLIGHT = 2000


class Speed(NamedTuple):
    """Messages a second: by the clock, and by the CPU time of the one process."""

    clock: float
    cpu: float


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """A broker that keeps everything for clients that are away. Its port."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not program:
        raise SystemExit("benchmarks.bridge: needs mosquitto on the PATH (Debian: apt install mosquitto)")
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "max_queued_messages 0"]
    lines += ["max_inflight_messages 0", "set_tcp_nodelay true"]
    lines += ["user root"] if os.getuid() == 0 else []
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    with (folder / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen([program, "-c", folder / "mosquitto.conf"], stdout=log, stderr=log)
    try:
        wait(lambda: _listens(port), "mosquitto to listen")
        yield port
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="probe")
    with contextlib.suppress(OSError):
        client.connect("127.0.0.1", port)
        client.disconnect()
        return True
    return False


def wait(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"benchmarks.bridge: waited {seconds:.0f} s for {what}")
        time.sleep(0.01)


def receiver(port: int, name: str, version_5: bool) -> paho.Client:
    """A client with a lasting session, as the bridge has."""
    options = MqttOptions(
        url=f"mqtt://127.0.0.1:{port}",
        client_id=name,
        version_5=version_5,
        session=Session(expiry_sec=3600, receive_maximum=65_535),
    )
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        protocol=paho.MQTTv5 if version_5 else paho.MQTTv311,
        **({} if version_5 else {"clean_session": False}),  # type: ignore[arg-type]
    )
    client.connect_async("127.0.0.1", port, **options.connect_arguments())  # type: ignore[arg-type]
    return client


def subscribe(port: int, name: str, version_5: bool) -> None:
    """Make the session, and leave."""
    granted = threading.Event()
    client = receiver(port, name, version_5)

    def on_connect(*_: Any) -> None:
        client.subscribe(FILTER, qos=1)

    client.on_connect = on_connect
    client.on_subscribe = lambda *_: granted.set()
    client.loop_start()
    wait(granted.is_set, "a subscription")
    client.disconnect()
    client.loop_stop()


def publish(port: int, messages: int) -> None:
    """One reading a message of the office's temperatures, a device after the other."""
    values = temperatures()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="publisher")
    client.max_inflight_messages_set(IN_FLIGHT)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for n in range(messages):
        payload = f'{{"ts": {START_MS + n}, "values": {{"temperature": {values[n % len(values)]}}}}}'
        sent = client.publish(f"devices/dev-{n % DEVICES}/telemetry", payload, qos=1)
        if n % IN_FLIGHT == 0 or n == messages - 1:
            sent.wait_for_publish(60)
    client.disconnect()
    client.loop_stop()


def discard(port: int, messages: int, version_5: bool) -> None:
    """The process beside which the bridge is measured: prints its speeds."""
    count = 0
    began = cpu = 0.0
    done = threading.Event()

    def on_message(*_: Any) -> None:
        nonlocal count, began, cpu
        if not count:
            began, cpu = time.perf_counter(), time.process_time()
        count += 1
        if count == messages:
            done.set()

    client = receiver(port, "paho", version_5)
    client.on_message = on_message
    client.loop_start()
    if not done.wait(300):
        raise SystemExit(f"paho received {count} of {messages} messages")
    print(messages / (time.perf_counter() - began), messages / (time.process_time() - cpu))
    client.disconnect()
    client.loop_stop()


def _on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def run_paho(port: int, messages: int, protocol: str) -> Speed:
    command = [sys.executable, "-m", "benchmarks.bridge", "--discard", str(port)]
    command += ["--messages", str(messages), "--protocol", protocol]
    done = subprocess.run(command, cwd=ROOT, preexec_fn=_on_one_core, stdout=subprocess.PIPE, check=True)
    clock, cpu = done.stdout.split()
    return Speed(float(clock), float(cpu))


def run_bridge(port: int, redis_url: str, chosen: argparse.Namespace, log: Path) -> Speed:
    environment = {
        **os.environ,
        "MQTT_URL": f"mqtt://127.0.0.1:{port}",
        "MQTT_PROTOCOL": chosen.protocol,
        "REDIS_URL": redis_url,
        "BRIDGE_NAME": "bridge",
        "BRIDGE_TOPICS": FILTER,
        "BRIDGE_LAYOUT": chosen.layout,
    }
    with redis.Redis.from_url(redis_url) as client, log.open("ab") as out:
        client.flushdb()

        def added() -> int:
            stats = client.info("commandstats")
            return int(stats.get("cmdstat_xadd", {}).get("calls", 0))

        client.config_resetstat()
        process = subprocess.Popen(
            [sys.executable, "main.py", "bridge"],
            cwd=ROOT,
            env=environment,
            preexec_fn=_on_one_core,
            stdout=out,
            stderr=out,
        )
        try:
            wait(lambda: added() > 0, "the first entry")
            first, began, cpu = added(), time.perf_counter(), _cpu(process.pid)
            wait(lambda: added() >= chosen.messages, "the last entry", 300)
            seconds, used = time.perf_counter() - began, _cpu(process.pid) - cpu
        finally:
            process.terminate()
            process.wait()
        lengths = sum(int(client.xlen(key)) for key in client.scan_iter("mqtt_stream:*", count=1000))
        if lengths != chosen.messages:
            raise SystemExit(f"benchmarks.bridge: {lengths} entries of {chosen.messages} messages")
    return Speed((chosen.messages - first) / seconds, (chosen.messages - first) / used)


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(chosen: argparse.Namespace) -> list[tuple[Speed, Speed]]:
    """(bridge, paho) of each round, after one that warms up."""
    version_5 = chosen.protocol == "5"
    rounds: list[tuple[Speed, Speed]] = []
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        valkey = Valkey(folder / "valkey")
        valkey.start()
        stack.callback(valkey.stop)
        port = stack.enter_context(mosquitto(folder))
        for session in ("bridge", "paho"):
            subscribe(port, session, version_5)
        for number in range(chosen.rounds + 1):
            publish(port, chosen.messages)
            if number % 2:
                paho_speed = run_paho(port, chosen.messages, chosen.protocol)
            bridge_speed = run_bridge(port, valkey.url, chosen, folder / "bridge.log")
            if not number % 2:
                paho_speed = run_paho(port, chosen.messages, chosen.protocol)
            if number:
                rounds.append((bridge_speed, paho_speed))
    return rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--protocol", choices=("5", "3.1.1"), default="5")
    parser.add_argument("--layout", choices=("shards", "series"), default="shards")
    parser.add_argument("--discard", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.discard:
        discard(chosen.discard, chosen.messages, chosen.protocol == "5")
        return 0
    rounds = measure(chosen)
    for place, what in enumerate(("by the clock", "by CPU time")):
        mine, theirs = ([speeds[who][place] for speeds in rounds] for who in (0, 1))
        ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
        for name, found in (("bridge", mine), ("paho", theirs)):
            spread = f"{min(found):,.0f} to {max(found):,.0f}"
            print(f"{what:<14}{name:<8}{statistics.median(found):>10,.0f} messages/s   ({spread})")
        median = statistics.median(ratios)
        print(f"{what:<14}{'ratio':<8}{median:>10.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
