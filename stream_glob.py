"""Redis's globs, as SCAN and KEYS match them. Pure."""

from __future__ import annotations

import re


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern for `fullmatch`. `*`, `?`, `[abc]`, `[a-c]`, `[^abc]` and `\\` before a character.

    As in Redis's stringmatchlen, a set that is not closed ends with the pattern.
    """
    parts: list[str] = []
    place = 0
    while place < len(pattern):
        letter = pattern[place]
        place += 1
        if letter == "*":
            parts.append(".*")
        elif letter == "?":
            parts.append(".")
        elif letter == "[":
            found, place = _set(pattern, place)
            parts.append(found)
        else:
            if letter == "\\" and place < len(pattern):
                letter = pattern[place]
                place += 1
            parts.append(re.escape(letter))
    return re.compile("".join(parts), re.DOTALL)


def _set(pattern: str, place: int) -> tuple[str, int]:
    """The set that begins at `place`, and where it ends."""
    negated = pattern[place : place + 1] == "^"
    place += negated
    members = ""
    while place < len(pattern) and pattern[place] != "]":
        if pattern[place] == "\\" and place + 1 < len(pattern):
            place += 1
            members += re.escape(pattern[place])
        elif pattern[place + 1 : place + 2] == "-" and place + 2 < len(pattern):
            low, high = sorted((pattern[place], pattern[place + 2]))
            members += f"{re.escape(low)}-{re.escape(high)}"
            place += 2
        else:
            members += re.escape(pattern[place])
        place += 1
    if not members:
        return ("." if negated else "(?!)"), place + 1
    return f"[{'^' if negated else ''}{members}]", place + 1
