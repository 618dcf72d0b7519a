"""Adds live readings at a steady rate: a process of its own, so that it keeps time beside who measures.

    python -m benchmarks.feeder REDIS_URL

Says `ready`; takes `feed RATE` and `stop` from its input, and says after each `stop` how many probes went.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import redis_client
from benchmarks.wire import Command, Wire

STREAMS = 100
TICKS = 100  # a second
PROBE = ("probe", "sent")  # its series


def feed(wire: Wire, rate: int, stop: threading.Event) -> int:
    """`rate` readings a second until `stop`. The first of each tick goes to the probe: how many did."""
    ticks = min(TICKS, rate)
    began = time.perf_counter()
    tick = number = 0
    while not stop.is_set():
        time.sleep(max(0.0, began + tick / ticks - time.perf_counter()))
        due = (tick + 1) * rate // ticks - tick * rate // ticks
        others: list[Command] = [
            ("XADD", f"mqtt_stream:live-{n % STREAMS}:count", "*", "value", str(n))
            for n in range(number, number + due - 1)
        ]
        number += due
        tick += 1
        now = str(time.time_ns() // 1000)
        probe = ("XADD", "mqtt_stream:" + ":".join(PROBE), "*", "value", str(tick), "timestamp", now)
        wire.ask_all([probe, *others])
    return tick


class Feeder:
    """The process, from the side of who started it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def feed(self, rate: int) -> None:
        self._say(f"feed {rate}")

    def stop(self) -> int:
        """How many probes were sent since `feed`."""
        self._say("stop")
        return int(self.hear())

    def hear(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit("benchmark: what feeds the streams has ended")
        return line.strip()

    def _say(self, line: str) -> None:
        if self._process.stdin:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


@contextlib.contextmanager
def feeder(redis_url: str) -> Iterator[Feeder]:
    """A feeder that is ready; ended at the end, come what may."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.feeder", redis_url],
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            found = Feeder(process)
            found.hear()
            yield found
        finally:
            process.kill()


def main() -> int:
    with redis_client.connect(sys.argv[1], timeout_sec=60) as client:
        wire = Wire(client)
        stop, sent = threading.Event(), [0]
        thread = threading.Thread()
        print("ready", flush=True)
        for line in sys.stdin:
            if line.startswith("feed"):
                stop.clear()
                rate = int(line.split()[1])
                thread = threading.Thread(
                    target=lambda rate=rate: sent.__setitem__(0, feed(wire, rate, stop)), daemon=True
                )
                thread.start()
            else:
                stop.set()
                thread.join()
                print(sent[0], flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
