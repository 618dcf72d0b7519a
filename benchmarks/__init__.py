"""Measurements, each a command that prints a table. Ratios within one run count, not single figures."""

from __future__ import annotations

import os

# Read when gRPC is first used. With it, a process that is started while a channel is open can die before it
# is the program that it should become.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
