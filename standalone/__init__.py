"""Everything on one machine with one command: embedded servers, a replay, a live table."""
