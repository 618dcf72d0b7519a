"""Measurements, each a command that prints a table. Ratios within one run count, not single figures."""
