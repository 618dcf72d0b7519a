"""Ports of a one-command run: usual ones for one run, and others that stay free for those beside it."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from standalone.ports import Ports, free_port

NAME = f"sluice-test-{os.getpid()}"
USUAL = free_port()  # of the test: nobody else knows it


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names without files")
def test_of_two_runs_that_begin_together_one_has_the_usual_ports() -> None:
    with Ports(NAME) as first:
        with Ports(NAME) as second:
            assert (first.free(USUAL), second.free(USUAL) != USUAL) == (USUAL, True)
        with Ports(NAME) as third:
            assert third.free(USUAL) != USUAL
    with Ports(NAME) as fourth:
        assert fourth.free(USUAL) == USUAL


def test_a_port_that_is_taken_is_passed_over_for_one_that_no_connection_gets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = free_port(taken.getsockname()[1])
    assert 10_000 <= found < 30_000
