"""What the terminal shows of what devices send."""

from __future__ import annotations

import io

from rich.console import Console

from ops.ledger import Books
from standalone import screen
from standalone.screen import Alerted, Newest


def shown(*newest: Newest, alerts: tuple[Alerted, ...] = ()) -> str:
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=False).print(screen.table(Books(), 0, alerts, newest, ""))
    return out.getvalue()


def test_names_and_states_are_shown_as_they_are_and_never_as_markup() -> None:
    text = shown(Newest("[red]x[/red]", "[/bold]", "[/nope] hi", 1.0))
    assert "[red]x[/red]" in text
    assert "[/nope] hi" in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = shown(Newest("d", "s", "\x1b[2J\x07" + "x" * 500, 1.0))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "x" * 100 not in text


def test_what_is_not_accounted_for_is_said_in_capitals() -> None:
    assert "2 NOT accounted for" in screen.accounted(Books(read=2))
    assert screen.accounted(Books(read=2, stored=1, duplicate=1)).startswith("2 entries read = 1 stored")


def test_alerts_are_shown_with_their_rule_and_peak_and_never_as_markup() -> None:
    alert = Alerted("active", "critical", "[red]x[/red]", "co2", "max 900", "930.5", 14.2)
    text = shown(alerts=(alert,))
    assert "newest alerts" in text
    for part in ("active", "critical", "[red]x[/red]", "max 900", "930.5", "14 s"):
        assert part in text
    assert "newest alerts" not in shown()
