"""What EMQX with the files of deploy/emqx puts into Redis is what Sluice's contract says."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Settings
from parse import Parser
from schema import DeviceStatus, Entry, Parsed, Reason
from tests.emqx_eval import RuleFailed
from tests.emqx_rules import FOLDER, commands, handed_over, load, render_log
from tests.emqx_sql import parse_rule
from tests.payload_examples import EXAMPLES, NOON_MS, Example
from tests.support import ROOT
from wiring import limits

RECEIVED_MS = 1_700_000_000_000
ENTRY_ID = b"1700000000500-0"
DEFAULTS = Settings.model_construct()  # whatever the environment says
PARSER = Parser(limits(DEFAULTS))

FILES = sorted(path.stem for path in FOLDER.glob("*.hocon"))
LAYOUTS = [name for name in FILES if name != "actions"]
EVERYTHING = load(*sorted(FILES))
SHARDS = load("actions", "shards")
SERIES = load("actions", "series-pico", "series-placebrain", "series-feeds", "status")

examples = settings(max_examples=150, deadline=None)


def entries(config: dict[str, Any], topic: str, payload: bytes) -> list[Entry]:
    """The entries that Redis makes of EMQX's commands."""
    found = []
    for command in commands(config, topic, payload, RECEIVED_MS):
        assert command[0] == b"XADD"
        assert command[2] == b"*"
        found.append(Entry(command[1], ENTRY_ID, command[3:]))
    return found


def fields_of(entry: Entry) -> dict[bytes, bytes]:
    return dict(zip(entry.fields[::2], entry.fields[1::2], strict=True))


def parse(entry: Entry) -> Parsed:
    return PARSER.parse(entry, RECEIVED_MS * 1000)


def whole(topic: str, payload: bytes) -> Parsed:
    """What Sluice reads from the one entry of this message in the shards."""
    (entry,) = entries(SHARDS, topic, payload)
    return parse(entry)


def values_of(found: list[Parsed]) -> Counter[tuple[str, str, int, float | None, str | None]]:
    return Counter(
        (r.device_id, r.sensor_type, r.timestamp_us, r.value, r.value_text)
        for p in found
        for r in p.readings
    )


# The files


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_rule_has_its_actions_and_every_action_its_connector(name: str) -> None:
    config = load("actions", name)
    for rule in config["rule_engine"]["rules"].values():
        parse_rule(rule["sql"])
        assert rule["actions"]
        for action in rule["actions"]:
            kind, _, action_name = action.partition(":")
            assert action_name in config["actions"][kind]


def test_every_action_has_its_connector_and_every_fallback_its_action() -> None:
    actions = EVERYTHING["actions"]
    for kind, named in actions.items():
        for action in named.values():
            assert action["connector"] in EVERYTHING["connectors"][kind]
            for fallback in action.get("fallback_actions", []):
                assert fallback["kind"] == "reference"
                assert fallback["name"] in actions[fallback["type"]]
    assert all(action["fallback_actions"] for action in actions["redis"].values())


def test_files_of_two_connectors_are_never_the_same() -> None:
    paths = [one["filepath"] for one in EVERYTHING["connectors"]["disk_log"].values()]
    assert len(set(paths)) == len(paths) == 2


@pytest.mark.parametrize("name", ["sluice_shards", "sluice_series"])
def test_waiting_is_long_and_bounded(name: str) -> None:
    options = EVERYTHING["actions"]["redis"][name]["resource_opts"]
    assert re.fullmatch(r"[0-9]+m", options["request_ttl"])
    assert options["max_buffer_bytes"] == "64MB"
    assert options["worker_pool_size"] * 64 <= 512
    assert options["query_mode"] == "async"


@pytest.mark.parametrize("name", FILES)
def test_a_length_limit_is_spoken_of_only_with_its_warning(name: str) -> None:
    text = (FOLDER / f"{name}.hocon").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert "MAXLEN" not in line or line.lstrip().startswith("#")
    for comment in re.findall(r"(?:^ *#.*\n)+", text, re.MULTILINE):
        assert "MAXLEN" not in comment or re.search(r"deletes\s(?:\s*#\s)?unread", comment)


def test_every_setting_of_the_actions_says_what_it_risks() -> None:
    lines = (FOLDER / "actions.hocon").read_text(encoding="utf-8").splitlines()
    bare = [
        line.strip()
        for before, line in pairwise(lines)
        if re.match(r"    +[a-z_]+ = ", line) and not before.strip().startswith("#")
    ]
    assert bare == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_no_variable_that_hocon_would_put_in(name: str) -> None:
    text = (FOLDER / f"{name}.hocon").read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    outside = re.sub(r'""".*?"""|"[^"\n]*"', "", code, flags=re.DOTALL)
    assert "${" not in outside
    assert not re.search(r"\bpassword = ", code)


def test_variables_of_templates_are_columns_of_the_rules_that_use_them() -> None:
    """A misspelt one would be the word `undefined` in every entry."""
    for rule in EVERYTHING["rule_engine"]["rules"].values():
        columns = {field.alias for field in parse_rule(rule["sql"]).fields}
        for action in rule["actions"]:
            settings_of = EVERYTHING["actions"]["redis"][action.partition(":")[2]]
            fallback = EVERYTHING["actions"]["disk_log"][settings_of["fallback_actions"][0]["name"]]
            used = " ".join(
                [*settings_of["parameters"]["command_template"], fallback["parameters"]["template"]]
            )
            assert set(re.findall(r"\$\{([^}]*)\}", used)) <= columns


# Whole messages in shards

TOPICS = [
    ("pico/temperature/d1", "d1"),
    ("placebrain/home/devices/d1/telemetry", "d1"),
    ("ann/d1/feeds/temperature", "d1"),
    ("pico/d1/feeds/temperature", "d1"),
    ("sensors/d1/temperature", "d1"),
    ("sensors/d1/status", "d1"),
    ("devices/d1/telemetry", "d1"),
    ("placebrain/home/devices/d1/status", "d1"),
    ("devices/d1/status", "d1"),
    ("ann/d1/status", "d1"),
    ("pico/temperature/status", "status"),
]
STATUS_TOPICS = [topic for topic, _ in TOPICS if topic.endswith("/status") and "pico" not in topic][1:]


@pytest.mark.parametrize(("topic", "device"), TOPICS)
def test_every_message_of_a_default_template_is_one_entry_of_its_device(topic: str, device: str) -> None:
    payload = b"online" if topic in STATUS_TOPICS else b'{"ts": 1700000000, "temperature": 21.5}'
    parsed = whole(topic, payload)
    found = parsed.status.device_id if parsed.status else parsed.readings[0].device_id
    assert found == device
    assert not parsed.rejections


def sample_of(template: str) -> str:
    """A topic that the template matches, with names that no other template has."""
    return re.sub(r"\{([a-z_]+)\}", r"x-\1", template)


@pytest.mark.parametrize("template", [*DEFAULTS.topic_templates, *DEFAULTS.status_templates])
def test_every_default_template_is_carried_by_one_rule(template: str) -> None:
    (entry,) = entries(SHARDS, sample_of(template), b"1")
    assert fields_of(entry)[b"topic"] == sample_of(template).encode()


@pytest.mark.parametrize(
    "topic",
    ["pico/events/rpc", "sensors/events/rpc", "pico/x/status", "sensors/x/status", "zigbee2mqtt/online"],
)
def test_a_topic_that_several_templates_match_is_carried_once(topic: str) -> None:
    assert len(entries(SHARDS, topic, b"1")) == 1


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_payloads_of_real_devices_pass_as_they_are(example: Example) -> None:
    (entry,) = entries(SHARDS, example.topic, example.payload)
    assert fields_of(entry)[b"payload"] == example.payload
    assert len(PARSER.parse(entry, NOON_MS * 1000).readings) == len(example.told)


def test_all_messages_of_a_device_go_into_one_of_sixteen_shards() -> None:
    topics = ["ann/d1/feeds/a", "devices/d1/telemetry", "placebrain/p/devices/d1/status", "pico/t/d1"]
    assert len({entries(SHARDS, topic, b"1")[0].stream for topic in topics}) == 1
    used = Counter(entries(SHARDS, f"pico/t/device-{n}", b"1")[0].stream for n in range(1000))
    assert set(used) == {b"mqtt_stream:shard:%d" % n for n in range(16)}
    assert max(used.values()) < 2 * min(used.values())


levels = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="+#/\x00"), max_size=12)


@examples
@given(levels, levels, st.binary(max_size=60))
def test_a_payload_passes_as_the_bytes_that_came(sensor: str, device: str, payload: bytes) -> None:
    topic = f"pico/{sensor}/{device}"
    (entry,) = entries(SHARDS, topic, payload)
    fields = fields_of(entry)
    assert fields[b"payload"] == payload
    assert fields[b"topic"] == topic.encode()
    assert re.fullmatch(rb"mqtt_stream:shard:(?:[0-9]|1[0-5])", entry.stream)
    by_hand = [b"topic", topic.encode(), b"payload", payload, b"timestamp", b"1700000000000"]
    by_hand += [b"mid", fields[b"mid"]]
    assert parse(entry) == parse(Entry(b"mqtt_stream:shard:0", ENTRY_ID, by_hand))


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("pico//d1", b"1", Reason.SENSOR_TYPE_EMPTY),
        ("pico/t/", b"1", Reason.DEVICE_ID_EMPTY),
        ("pico/t/d1", b"", Reason.PAYLOAD_EMPTY),
        ("pico/t/d1", b"nan", Reason.VALUE_NAN),
        ("pico/t/d1", b"undefined", Reason.VALUE_UNDEFINED),
        ("pico/t/d1", b"null", Reason.VALUE_NULL),
        ("devices/d1/telemetry", b'{"t": NaN}', Reason.VALUE_NAN),
        ("devices/d1/telemetry", b'{"t": null}', Reason.VALUE_NULL),
        ("devices/d1/telemetry", b'{"t": ', Reason.PAYLOAD_NOT_JSON),
        ("devices/d1/status", b"perhaps", Reason.STATUS_UNKNOWN),
    ],
)
def test_what_cannot_be_read_becomes_a_dead_letter(topic: str, payload: bytes, reason: Reason) -> None:
    assert [rejection.reason for rejection in whole(topic, payload).rejections] == [reason]


def test_the_time_at_emqx_counts_where_the_payload_has_none() -> None:
    assert whole("pico/t/d1", b"21.5").readings[0].timestamp_us == RECEIVED_MS * 1000
    with_time = whole("pico/t/d1", b'{"ts": 1600000000, "value": 1}').readings[0]
    assert with_time.timestamp_us == 1_600_000_000_000_000


def test_an_entry_that_emqx_writes_twice_is_one_reading() -> None:
    (entry,) = entries(SHARDS, "pico/t/d1", b"21.5")
    again = entry._replace(id=b"1700000060000-0")
    assert parse(entry) == parse(again)
    assert not parse(entry).own_id


@pytest.mark.parametrize("config", [SHARDS, SERIES], ids=["shards", "series"])
@pytest.mark.parametrize(("topic", "device"), TOPICS)
def test_a_message_that_the_device_sends_again_has_the_same_identity(
    config: dict[str, Any], topic: str, device: str
) -> None:
    """So it is the same reading, if it carries its time."""
    payload = b'{"ts": 1600000000, "values": {"a": 1}}'
    mids = {
        command[command.index(b"mid") + 1]
        for received in (RECEIVED_MS, RECEIVED_MS + 900)
        for command in commands(config, topic, payload, received)
    }
    assert mids <= {hashlib.sha256(payload).hexdigest().encode()}


def test_a_message_that_the_device_sends_again_is_one_reading_if_it_carries_its_time() -> None:
    payload = b'{"ts": 1600000000, "value": 1}'
    keys = {
        parse(Entry(command[1], ENTRY_ID, command[3:])).readings[0].key
        for received in (RECEIVED_MS, RECEIVED_MS + 900)
        for command in commands(SHARDS, "pico/t/d1", payload, received)
    }
    assert len(keys) == 1


@pytest.mark.parametrize("config", [SHARDS, SERIES], ids=["shards", "status"])
@pytest.mark.parametrize("topic", STATUS_TOPICS)
@pytest.mark.parametrize(
    ("payload", "online"), [(b"online", True), (b'{"status": "offline"}', False), (b"0", False)]
)
def test_a_status_is_told_whole(config: dict[str, Any], topic: str, payload: bytes, online: bool) -> None:
    (entry,) = entries(config, topic, payload)
    owner = {"p": "home", "a": "ann", "d": ""}[topic[0]]
    assert parse(entry).status == DeviceStatus("d1", online, RECEIVED_MS * 1000, owner)


def test_beside_the_series_a_reading_on_a_topic_that_ends_in_status_is_no_status() -> None:
    (entry,) = entries(SERIES, "pico/temperature/status", b"21.5")
    assert entry.stream == b"mqtt_stream:status:temperature"
    assert entries(SERIES, "sensors/d1/status", b"21.5") == []


# One stream a series


@pytest.mark.parametrize("topic", ["pico/t/d1", "ann/d1/feeds/t"])
@given(value=st.floats(allow_nan=False, allow_infinity=False))
@examples
def test_a_number_reaches_its_series_with_every_digit(topic: str, value: float) -> None:
    (entry,) = entries(SERIES, topic, repr(value).encode())
    (reading,) = parse(entry).readings
    assert entry.stream == b"mqtt_stream:d1:t"
    assert (reading.device_id, reading.sensor_type, reading.value) == ("d1", "t", value)
    assert reading.timestamp_us == RECEIVED_MS * 1000


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("pico/t/d1", b"NaN", Reason.VALUE_NAN),
        ("pico/t/d1", b"inf", Reason.VALUE_INFINITE),
        ("pico/t/d1", b"null", Reason.VALUE_NULL),
        ("pico/t/d1", b"undefined", Reason.VALUE_UNDEFINED),
        ("pico/t/d1", b"", Reason.VALUE_EMPTY),
        ("pico/t/d1", b'{"value": 1}', Reason.VALUE_NOT_A_NUMBER),
        ("pico/t/d1", b"\xff", Reason.INVALID_UTF8),
        ("pico//d1", b"1", Reason.STREAM_KEY_EMPTY_PART),
        ("ann//feeds/t", b"1", Reason.STREAM_KEY_EMPTY_PART),
    ],
)
def test_a_bare_value_that_is_none_becomes_a_dead_letter(
    topic: str, payload: bytes, reason: Reason
) -> None:
    (entry,) = entries(SERIES, topic, payload)
    assert [rejection.reason for rejection in parse(entry).rejections] == [reason]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("pico/a:b/d1", b"1"),
        ("ann/d1/feeds/a:b", b"1"),
        ("placebrain/home/devices/d1/telemetry", b'{"values": {"a:b": 1}}'),
    ],
)
def test_a_colon_in_a_sensor_does_not_make_a_reading_another_devices(topic: str, payload: bytes) -> None:
    (entry,) = entries(SERIES, topic, payload)
    assert parse(entry).readings[0][:2] == ("d1", "a.b")


TELEMETRY = "placebrain/home/devices/d1/telemetry"
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=":"), max_size=10)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    words,
    st.sampled_from(["NaN", "null", "undefined", "true", "21.5", 1e-11, 1e300, -0.0, ""]),
)
times: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.integers(0, 1_700_000_000_000),
    st.floats(1, 1_700_000_000),
    st.sampled_from(["2023-01-02T03:04:05.678Z", "yesterday", "", True]),
)


def _json(document: Any, ascii_only: bool) -> bytes:
    return json.dumps(document, ensure_ascii=ascii_only).encode()


@examples
@given(
    st.dictionaries(names, scalars, max_size=6), times, st.sampled_from(["ts", "timestamp"]), st.booleans()
)
def test_taken_apart_by_emqx_a_message_says_what_it_says_whole(
    members: dict[str, Any], time: Any, name: str, ascii_only: bool
) -> None:
    payload = _json({name: time, "values": members}, ascii_only)
    apart = [parse(entry) for entry in entries(SERIES, TELEMETRY, payload)]
    assert len(apart) == len(members)
    assert values_of(apart) == values_of([whole(TELEMETRY, payload)] if members else [])
    assert sum(len(parsed.rejections) for parsed in apart) == sum(
        len(parsed.rejections) for parsed in ([whole(TELEMETRY, payload)] if members else [])
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.VALUE_NULL),
        ("nan", Reason.VALUE_NAN),
        ("undefined", Reason.VALUE_UNDEFINED),
        ("", Reason.VALUE_EMPTY),
        (10**400, Reason.VALUE_OUT_OF_RANGE),
    ],
)
def test_a_bad_member_is_rejected_alone_with_its_reason(value: Any, reason: Reason) -> None:
    payload = _json({"values": {"a": value, "b": 1}}, ascii_only=True)
    bad, good = (parse(entry) for entry in entries(SERIES, TELEMETRY, payload))
    assert [(r.sensor_type, r.reason) for r in bad.rejections] == [("a", reason)]
    assert [(r.sensor_type, r.value) for r in good.readings] == [("b", 1.0)]


@pytest.mark.parametrize(
    "payload",
    [b'{"values": {"a": NaN, "b": 1}}', b'{"values": [1]}', b'{"a": 1}', b'{"values": {"a": 1e999}}'],
)
def test_what_emqx_cannot_take_apart_is_lost_in_emqx_and_a_dead_letter_or_a_reading_whole(
    payload: bytes,
) -> None:
    with pytest.raises(RuleFailed):
        commands(SERIES, TELEMETRY, payload, RECEIVED_MS)
    parsed = whole(TELEMETRY, payload)
    assert parsed.rejections or parsed.readings


def test_values_put_into_the_template_as_they_are_would_be_changed() -> None:
    """Why the rule has `json_encode`: the template rounds to ten decimals and takes quotes away."""
    sql = SERIES["rule_engine"]["rules"]["sluice_series_placebrain"]["sql"]
    naive = {**SERIES, "rule_engine": {"rules": {"naive": {
        "sql": sql.replace("json_encode(s.value)", "s.value"), "actions": ["redis:sluice_series"]
    }}}}  # fmt: skip
    payload = b'{"values": {"small": 1e-11, "kind": "21.5", "door": "open"}}'
    small, kind, door = (parse(entry) for entry in entries(naive, TELEMETRY, payload))
    assert (small.readings[0].value, kind.readings[0].value) == (0.0, 21.5)
    assert door.rejections[0].reason is Reason.VALUE_NOT_A_NUMBER
    small, kind, door = (parse(entry) for entry in entries(SERIES, TELEMETRY, payload))
    assert small.readings[0].value == 1e-11
    assert [one.readings[0].value_text for one in (kind, door)] == ["21.5", "open"]


def test_without_a_timestamp_an_entry_that_is_written_twice_would_be_two_readings() -> None:
    """Why every template has one: the identity of the message is not enough."""
    (entry,) = entries(SERIES, "pico/t/d1", b"21.5")
    at = list(entry.fields).index(b"timestamp")
    bare = entry._replace(fields=[*entry.fields[:at], *entry.fields[at + 2 :]])
    assert parse(bare) != parse(bare._replace(id=b"1700000001000-0"))


# The fallback


class _Redis:
    """Takes what the script of docs/emqx.md adds."""

    def __init__(self) -> None:
        self.added: list[Entry] = []

    def xadd(self, stream: str, fields: dict[str, Any]) -> None:
        flat = [
            one if isinstance(one, bytes) else str(one).encode() for pair in fields.items() for one in pair
        ]
        self.added.append(Entry(stream.encode(), ENTRY_ID, flat))


def _replayed(lines: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    text = (ROOT / "docs" / "emqx.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    server = _Redis()
    monkeypatch.setattr(redis.Redis, "from_url", lambda *_: server)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    monkeypatch.setenv("REDIS_URL", "redis://nowhere")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(script, "emqx.md", "exec"), {})  # noqa: S102 - our own page
    return server.added


@pytest.mark.parametrize(
    ("config", "topic", "payload"),
    [
        pytest.param(SHARDS, "devices/é/telemetry", b'{"a": 1, "b": "\xc3\xa9"}', id="shards"),
        pytest.param(SHARDS, "pico/t/d1", b"\xff\x00", id="bytes"),
        pytest.param(SERIES, "pico/t/d1", b"21.5", id="series"),
        pytest.param(
            SERIES, TELEMETRY, b'{"ts": 1600000000.25, "values": {"a": 1e-11, "b": "x"}}', id="apart"
        ),
    ],
)
def test_what_went_to_the_fallback_comes_back_as_it_would_have_come(
    config: dict[str, Any], topic: str, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"\n"  # EMQX puts an empty line where it opens a file again
    for handed in handed_over(config, topic, payload, RECEIVED_MS):
        action = config["actions"]["redis"][handed.action.partition(":")[2]]
        fallback = config["actions"]["disk_log"][action["fallback_actions"][0]["name"]]
        lines += render_log(fallback["parameters"]["template"], handed.selected) + b"\n"
    added = _replayed(lines, monkeypatch)
    assert [parse(entry) for entry in added] == [parse(entry) for entry in entries(config, topic, payload)]
    assert [entry.stream for entry in added] == [entry.stream for entry in entries(config, topic, payload)]
