"""How dead letters are shown: in a table, one in full, counted, and as JSON that keeps every byte."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ops import output
from ops.letters import Letter, moment
from values import entry_id_parts

HEADER = ("letter", "failed", "reason", "device", "sensor", "stream", "value", "replays")
_MOST_NAMES = 100_000  # of devices and streams that are counted apart


def cells(letter: Letter) -> tuple[str, ...]:
    return (
        letter.id.decode(),
        moment(entry_id_parts(letter.id)[0]),
        letter.reason,
        output.excerpt(letter.device),
        output.excerpt(letter.sensor),
        output.excerpt(_shown(letter.entry.stream)),
        output.excerpt(_value(letter), 24),
        str(letter.replays) if letter.replays else "",
    )


def _value(letter: Letter) -> str:
    """The offending text where the header has it, else what the original says of its value or payload."""
    fields = letter.entry.fields
    for name in (b"value", b"payload"):
        if not letter.value and name in fields[::2]:
            return _shown(fields[2 * list(fields[::2]).index(name) + 1])
    return letter.value


def in_full(letter: Letter, now: str) -> str:
    """Everything about one letter. `now`: what the present settings say of it."""
    entry = letter.entry
    lines = [f"letter         {letter.id.decode()}"]
    if letter.readable:
        lines += [
            f"reason         {output.printable(letter.reason)}",
            f"               {output.printable(letter.sentence)}",
            f"failed         {moment(letter.failed_at * 1000)}",
            f"stream         {output.printable(_shown(entry.stream))}",
            f"entry          {entry.id.decode()}, added {moment(entry_id_parts(entry.id)[0])}",
            f"device         {output.printable(letter.device) or '-'}",
            f"sensor         {output.printable(letter.sensor) or '-'}",
        ]
    if letter.replays:
        times = "once" if letter.replays == 1 else f"{letter.replays} times"
        lines.append(f"replayed       {times}, and failed again as {letter.replayed_id.decode()}")
    lines += [f"now            {now}", f"original fields ({len(entry.fields) // 2}):"]
    for name, value in zip(entry.fields[::2], entry.fields[1::2], strict=True):
        lines.append(f"  {output.printable(_shown(name))}: {output.printable(_shown(value))}")
    return "\n".join(lines) + "\n"


def json_object(letter: Letter) -> dict[str, object]:
    """The letter with every byte of the original: text where it is UTF-8, else `{"base64": …}`."""
    entry = letter.entry
    return {
        "id": letter.id.decode(),
        "reason": letter.reason,
        "sentence": letter.sentence,
        "failed_at": letter.failed_at,
        "original_stream": _exact(entry.stream),
        "original_id": entry.id.decode(),
        "device_id": letter.device,
        "sensor_type": letter.sensor,
        "value": letter.value,
        "replays": letter.replays,
        "replayed_id": letter.replayed_id.decode() or None,
        "fields": [
            [_exact(name), _exact(value)]
            for name, value in zip(entry.fields[::2], entry.fields[1::2], strict=True)
        ],
    }


def _exact(raw: bytes) -> object:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode("ascii")}


def _shown(raw: bytes) -> str:
    """For people: bytes that are not UTF-8 as `\\xff`."""
    return raw.decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Span:
    """How many letters there are of one kind, and the first and the last time they failed."""

    letters: int = 0
    first_ms: int = 0
    last_ms: int = 0

    def add(self, millis: int) -> None:
        self.first_ms = min(self.first_ms, millis) if self.letters else millis
        self.last_ms = max(self.last_ms, millis)
        self.letters += 1


@dataclass(slots=True)
class Statistics:
    """Letters counted by reason, device and stream. Bounded, however many names there are."""

    reasons: dict[str, Span] = field(default_factory=dict)
    devices: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    replays: Counter[int] = field(default_factory=Counter)
    size: int = 0

    @classmethod
    def of(cls, letters: Iterable[Letter]) -> Statistics:
        found = cls()
        for letter in letters:
            # reasons of our own are some dozens; a forged letter may say anything
            reason = letter.reason if letter.reason in found.reasons or len(found.reasons) < 200 else "…"
            found.reasons.setdefault(reason, Span()).add(entry_id_parts(letter.id)[0])
            _count(found.devices, letter.device or "(unknown)")
            _count(found.streams, _shown(letter.entry.stream))
            found.replays[letter.replays] += 1
            found.size += letter.size
        return found

    @property
    def letters(self) -> int:
        return sum(span.letters for span in self.reasons.values())

    def as_json(self) -> dict[str, object]:
        return {
            "letters": self.letters,
            "bytes": self.size,
            "reasons": {
                reason: {
                    "letters": span.letters,
                    "first": moment(span.first_ms),
                    "last": moment(span.last_ms),
                }
                for reason, span in self.by_reason()
            },
            "devices": dict(self.devices.most_common(20)),
            "streams": dict(self.streams.most_common(20)),
            "replays": {str(times): count for times, count in sorted(self.replays.items())},
        }

    def by_reason(self) -> list[tuple[str, Span]]:
        return sorted(self.reasons.items(), key=lambda item: (-item[1].letters, item[0]))

    def rows(self) -> Iterable[Sequence[str]]:
        for reason, span in self.by_reason():
            yield reason, f"{span.letters:,}", moment(span.first_ms), moment(span.last_ms)


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < _MOST_NAMES else "(others)"] += 1
