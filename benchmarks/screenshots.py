"""The pictures under docs/images: the dashboard over the demo of ./run-standalone.sh, as Chromium shows it.

    .venv/bin/python -m benchmarks.screenshots [--seconds N] [--browser PATH]

The demo runs for a while first, so that there is something to see. With Debian's `fonts-inter` the text
looks as it does with the fonts that desktops bring.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ViewportSize, sync_playwright

from benchmarks.screen import CHROMIUM

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
_ADDRESS = re.compile(r"the dashboard: (http://\S+)")
_MOST_BYTES = 300_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A picture. `chosen`: of a series that has an alert, so that its limits are in the chart."""

    name: str
    width: int
    height: int
    scheme: Literal["dark", "light"]
    scale: float = 1.0
    chosen: bool = True


SHOTS = (
    Shot(name="dashboard-wall-dark", width=1920, height=1080, scheme="dark"),
    Shot(name="dashboard-wall-light", width=1920, height=1080, scheme="light"),
    Shot(name="dashboard-phone", width=390, height=844, scheme="dark", scale=2.0, chosen=False),
)


def take(browser: Browser, address: str, shot: Shot) -> None:
    page = browser.new_page(
        viewport=ViewportSize(width=shot.width, height=shot.height),
        color_scheme=shot.scheme,
        device_scale_factor=shot.scale,
    )
    page.goto(address)
    page.locator(".card .stroke[d]").first.wait_for(state="attached")
    if shot.chosen:
        watched = page.locator(".card", has_text="co2")
        wrong = watched.and_(page.locator(".critical, .warning"))
        (wrong if wrong.count() else watched).first.click()
    page.wait_for_timeout(12_000)  # for the line of the rate, and newer readings
    path = IMAGES / f"{shot.name}.png"
    page.screenshot(path=path)
    page.close()
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size:,} bytes")
    if size > _MOST_BYTES:
        raise SystemExit(f"{path.name} is larger than {_MOST_BYTES:,} bytes")


def demo_address(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while not (found := _ADDRESS.search(log.read_text())):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the demo did not start:\n{log.read_text()}")
        time.sleep(0.2)
    return found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=150, help="how long the demo runs first")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="a Chromium")
    chosen = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sluice-shots-") as folder:
        Path(folder).chmod(0o711)
        log = Path(folder) / "out"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "standalone.run", "--data", f"{folder}/data"]
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        try:
            address = demo_address(log, process)
            time.sleep(chosen.seconds)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chosen.browser, args=list(CHROMIUM))
                for shot in SHOTS:
                    take(browser, address, shot)
                browser.close()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
