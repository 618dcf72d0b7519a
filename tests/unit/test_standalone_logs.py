"""Logs of a one-command run: bounded, while their writers go on."""

from __future__ import annotations

import os
from pathlib import Path

import standalone.children as children
from standalone import logs
from standalone.children import Child
from tests.support import wait_until


def test_a_long_log_is_cut_under_its_writer_and_one_older_is_kept(tmp_path: Path) -> None:
    log, short = tmp_path / "worker.log", tmp_path / "bridge.log"
    short.write_text("few words")
    with log.open("ab", buffering=0) as writer:
        for turn in range(5):
            writer.write(b"%d" % turn * 1000)
            logs.cut(tmp_path, most=999)
            writer.write(b"and on")
    assert log.read_bytes() == b"and on"
    assert (tmp_path / "worker.log.1").read_bytes() == b"and on" + b"4" * 1000
    assert short.read_text() == "few words"
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_process_says_after_its_log_was_cut_is_found(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_bytes(b"of the run before " * 100)
    program = tmp_path / "main.py"
    program.write_text("import sys; print('first', flush=True); sys.stdin.read(); print('ended')")
    root, children.ROOT = children.ROOT, tmp_path
    try:
        child = Child("worker", tmp_path, dict(os.environ))
    finally:
        children.ROOT = root
    child.process.wait(60)
    wait_until(lambda: "ended" in child.said())
    logs.cut(tmp_path, most=100)
    with child.log.open("ab") as log:
        log.write(b"and on")
    assert child.said() == "and on"
