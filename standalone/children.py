"""Sluice's own processes in a one-command run: each with its log, ended in order."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from standalone.servers import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
END_SEC = 40.0


class Child:
    """`python main.py COMMAND` with its log in a file. Stop it in the `finally` of whoever started it."""

    def __init__(self, name: str, home: Path, environment: Mapping[str, str], *command: str) -> None:
        self.name = name
        self.environment = environment
        self.log = home / f"{name}.log"
        with self.log.open("ab") as log:
            self._began = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *command],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """What this run has written to the log."""
        with self.log.open("rb") as log:
            if self._began <= self.log.stat().st_size:  # else it was cut since (`logs.py`)
                log.seek(self._began)
            return log.read().decode(errors="replace")

    def wait_for(self, event: str, seconds: float) -> bool:
        """Whether it has logged this within `seconds`, while it runs."""
        deadline = time.monotonic() + seconds
        while event not in self.said():
            if not self.running or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def end(self) -> int:
        """SIGTERM, and after a while SIGKILL. Returns its status."""
        if self.running:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SEC)
            if self.running:
                self.process.kill()
        return self.process.wait()

    @property
    def in_order(self) -> bool:
        """Whether it ended as it should: by itself, or by SIGTERM before Python had loaded it."""
        return self.process.poll() in (0, -signal.SIGTERM)

    def how_it_ended(self) -> str:
        """One sentence, and what its log says that is worse than information."""
        status = self.process.returncode
        how = (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )
        bad = [line for line in self.said().splitlines()[-20:] if '"level": "info"' not in line]
        return "\n".join([f"the {self.name} {how}; see {self.log}", *bad[-5:]])
