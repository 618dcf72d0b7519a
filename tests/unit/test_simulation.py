"""What simulated devices send, and what is expected of it: held to the parser that reads it downstream."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
import main
import wiring
from mqtt import feeds, plan, scenario
from mqtt.feeds import Generated, Recorded
from mqtt.plan import Crowd, Message, Plan
from mqtt.scenario import Fault, Flaw, Scenario, Unfit
from mqtt.shapes import Shape, Template, Voice, moment
from mqtt.tally import Tally, manifest
from parse import Parser
from schema import Entry, Parsed
from tests.support import ROOT

START_US = 1_767_323_045_000_000
SETTINGS = config.load_edge()
# Of the defaults, those that are nobody's own format.
TEMPLATES = (
    "pico/{sensor_type}/{device_id}",
    "placebrain/{place_id}/devices/{device_id}/telemetry",
    "{user_id}/{device_code}/feeds/{feed_key}",
    "sensors/{device_id}/{sensor_type}",
    "devices/{device_id}/telemetry",
)
STATUS = "devices/{device_id}/status"
ROWS = [(("20.5", 20.5), ("438", 438.0)), (("21", 21.0), ("0.0031", 0.0031)), (("-3.5", -3.5), ("0", 0.0))]
EVERYTHING = Scenario(
    jitter=0.5,
    gap=Fault(0.05, 0.5, 2),
    duplicate=Fault(0.2, 0, 3),
    disorder=Fault(0.2, 0.1, 3),
    burst=Fault(0.05, 1, 5),
    restart=Fault(0.05, 0.1, 1),
    death=0.002,
    bad=tuple((flaw, 0.05) for flaw in Flaw),
    status_topic=STATUS,
)


def plan_of(
    found: Scenario = EVERYTHING,
    *,
    devices: int = 5,
    templates: tuple[str, ...] = TEMPLATES,
    shape: Shape | None = None,
    seed: int = 1,
    rate: float = 100.0,
) -> Plan:
    crowd = Crowd(devices=devices, templates=templates, shape=shape)
    feed = Recorded(("temperature", "co2"), ROWS, devices)
    return Plan(crowd, found, feed, random.Random(seed), lambda turn: turn / rate, START_US)


def first(count: int, found: Plan) -> list[Message]:
    return list(islice((message for message in found if message), count))


def read(parser: Parser, message: Message) -> Parsed:
    fields = (b"topic", message.topic.encode(), b"payload", message.payload)
    return parser.parse(Entry(b"mqtt_stream:shard:0", b"1767323045000-0", fields), START_US + 3_600_000_000)


@pytest.fixture(scope="module")
def parser() -> Parser:
    assert set(TEMPLATES) <= set(SETTINGS.topic_templates)
    return Parser(wiring.limits(SETTINGS))


chances = st.sampled_from([0.0, 0.0, 0.05, 0.3])
faults = st.builds(lambda chance, least, more: Fault(chance, least, least + more), chances, st.floats(0, 2),
    st.floats(0, 2))  # fmt: skip
scenarios = st.builds(
    Scenario,
    jitter=st.sampled_from([0.0, 0.3]),
    gap=faults,
    duplicate=faults,
    disorder=faults,
    burst=faults,
    restart=faults,
    death=st.sampled_from([0.0, 0.01]),
    bad=st.lists(st.sampled_from(list(Flaw)), unique=True, max_size=8).map(
        lambda flaws: tuple((flaw, 0.1) for flaw in flaws)
    ),
    status_topic=st.sampled_from(["", STATUS]),
)


@given(found=scenarios, seed=st.integers(0, 2**32), devices=st.integers(1, 12))
def test_the_parser_finds_in_each_message_exactly_what_the_plan_expects(
    found: Scenario, seed: int, devices: int
) -> None:
    reader = Parser(wiring.limits(SETTINGS))
    templates = ("devices/{device_id}/telemetry", *TEMPLATES)  # the first devices' payloads have a time
    for message in first(150, plan_of(found, seed=seed, devices=devices, templates=templates)):
        parsed = read(reader, message)
        assert bool(parsed.rejections) == (message.flaw is not None)
        assert len(parsed.readings) == message.rows
        if message.online is not None:
            assert parsed.status
            assert (parsed.status.device_id, parsed.status.online) == (message.device, message.online)
        lines = [json.loads(line) for line in manifest(message)]
        assert [(line["device"], line["sensor"], line["value"]) for line in lines] == [
            (reading.device_id, reading.sensor_type, reading.value) for reading in parsed.readings
        ]
        if message.time_us is not None:
            assert all(line["time"] == moment(message.time_us) for line in lines)
            assert {reading.timestamp_us for reading in parsed.readings} <= {message.time_us}


@pytest.mark.parametrize("shape", [Shape.SCALAR, Shape.VALUE, Shape.VALUES, Shape.FLAT])
def test_every_flaw_of_every_shape_is_one_dead_letter_and_spares_its_neighbours(
    parser: Parser, shape: Shape
) -> None:
    single = shape in (Shape.SCALAR, Shape.VALUE)
    voice = Voice(Template(f"{'pico/{sensor_type}' if single else 'devices'}/{{device_id}}"
        + ("" if single else "/telemetry")), ("temperature", "co2"), shape)  # fmt: skip
    for flaw in voice.flaws:
        payload, spoilt = voice.spoilt(ROWS[0], 0, START_US, flaw, member=1)
        message = Message(0, voice.topic(0, "sim-1", 0), payload)
        parsed = read(parser, message)
        assert parsed.rejections, flaw
        assert len(parsed.readings) == (len(voice.parts[0]) - 1 if spoilt >= 0 else 0), flaw
    assert set(Flaw) - set(voice.flaws) == ({Flaw.TIME, Flaw.FUTURE} if shape is Shape.SCALAR else set())


def test_senml_is_a_pack_of_records_with_a_base_time_in_seconds() -> None:
    voice = Voice(Template("devices/{device_id}/telemetry"), ("temperature", "co2"), Shape.SENML)
    records = json.loads(voice.payload(ROWS[0], 0, START_US + 250_000))
    assert records == [
        {"bt": START_US / 1e6 + 0.25, "n": "temperature", "v": 20.5},
        {"n": "co2", "v": 438},
    ]


def test_the_same_seed_makes_the_same_messages_and_another_seed_others() -> None:
    assert first(2000, plan_of(seed=7)) == first(2000, plan_of(seed=7))
    assert first(2000, plan_of(seed=7)) != first(2000, plan_of(seed=8))


def test_messages_come_in_the_order_of_their_times_but_those_that_are_late() -> None:
    messages = first(3000, plan_of(replace(EVERYTHING, death=0.0)))
    # one turn apart: what is held back is looked at once a turn
    assert all(later.due >= earlier.due - 0.0101 for earlier, later in pairwise(messages))
    late = [message for message in messages if message.late]
    assert len(late) > 100
    assert all(message.time_us and message.due - (message.time_us - START_US) / 1e6 > 0.05
        for message in late if message.recognisable)  # fmt: skip


def test_no_two_readings_of_a_device_share_a_time_so_that_only_copies_look_alike() -> None:
    messages = [
        message
        for message in first(5000, plan_of(replace(EVERYTHING, gap=Fault(), restart=Fault()), rate=1e5))
        if message.time_us and not message.copy
    ]
    seen = Counter((message.device, message.time_us) for message in messages)
    assert max(seen.values()) == 1
    copies = [message for message in first(5000, plan_of()) if message.copy]
    originals = {message.twin: message for message in first(5000, plan_of()) if not message.copy}
    known = [copy for copy in copies if copy.twin in originals]
    assert len(known) > 100
    assert all(copy.payload == originals[copy.twin].payload for copy in known)


def test_each_fault_happens_about_as_often_as_it_should() -> None:
    quiet = Scenario(duplicate=Fault(0.1), disorder=Fault(0.05, 0.1, 0.1), bad=((Flaw.NAN, 0.02),))
    messages = first(20_000, plan_of(quiet))
    assert sum(message.copy for message in messages) == pytest.approx(20_000 * 0.1 / 1.1, rel=0.15)
    assert sum(message.flaw is not None for message in messages) == pytest.approx(400, rel=0.3)
    assert sum(message.late for message in messages) == pytest.approx(1000 / 1.1, rel=0.2)


def test_without_a_scenario_the_plan_is_the_rate_and_nothing_else() -> None:
    messages = first(1000, plan_of(Scenario(), rate=50))
    assert [message.due for message in messages] == [number / 50 for number in range(1000)]
    assert {message.device for message in messages} == {f"sim-{number}" for number in range(1, 6)}
    assert not any(message.copy or message.late or message.flaw for message in messages)


def test_a_device_that_restarts_says_so_before_and_after_and_is_silent_between() -> None:
    calm = Scenario(restart=Fault(0.02, 1, 1), status_topic=STATUS)
    offline_at: dict[str, float] = {}
    told = Counter[bool]()
    for message in first(5000, plan_of(calm)):
        if message.online is False:
            offline_at[message.device] = message.due
        elif message.device in offline_at:
            assert message.online
            assert message.due >= offline_at.pop(message.device) + 1
        if message.online is not None:
            told[message.online] += 1
    assert told[False] > 20
    assert told[True] >= told[False]


def test_the_plan_ends_when_the_last_device_is_dead_and_what_is_late_still_comes() -> None:
    deadly = Scenario(death=0.1, duplicate=Fault(1.0, 5, 5), status_topic=STATUS)
    messages = [message for message in plan_of(deadly) if message]
    assert sum(message.online is False for message in messages) == 5
    assert sum(message.copy for message in messages) == sum(message.twin > 0 for message in messages) / 2
    assert messages[-1].copy


def test_when_all_devices_are_asleep_the_plan_says_that_there_is_nothing_now() -> None:
    asleep = Scenario(gap=Fault(1.0, 60, 60))
    crowd = Crowd(devices=3, templates=TEMPLATES)
    stopped = Plan(
        crowd, asleep, Recorded(("a",), [(("1", 1.0),)], 3), random.Random(1), lambda _: 0.0, START_US
    )
    assert list(islice(stopped, 5)) == [None] * 5


def test_what_is_held_back_is_bounded_and_nothing_is_lost_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_HELD", 10)
    crowded = plan_of(Scenario(disorder=Fault(1.0, 3600, 3600)))
    assert len(first(500, crowded)) == 500
    assert len(crowded._held) == 10


def test_devices_speak_the_templates_in_turn_and_owners_have_ten_devices_each() -> None:
    templates = ("a/{device_id}/t", "{user_id}/{device_code}/feeds/{feed_key}")
    topics = {message.topic for message in first(100, plan_of(Scenario(), devices=12, templates=templates))}
    assert {
        "a/sim-1/t",
        "a/sim-11/t",
        "user-1/sim-2/feeds/co2",
        "user-2/sim-12/feeds/temperature",
    } <= topics
    assert len(topics) == 6 + 6 * 2


@pytest.mark.parametrize(
    ("templates", "shape", "found", "says"),
    [
        (("a/+/{device_id}",), None, Scenario(), "the topic template 'a/+/{device_id}' cannot be used"),
        (("a/b",), None, Scenario(), "with {device_id} once"),
        (("$x/{device_id}",), None, Scenario(), "cannot be used"),
        (("a/{device_id}/{device_code}",), None, Scenario(), "cannot be used"),
        (("a/{device_id}",), Shape.SCALAR, Scenario(), "--payload scalar does not go with 'a/{device_id}'"),
        (
            ("a/{device_id}/{sensor_type}",),
            Shape.FLAT,
            Scenario(),
            "takes a template without {sensor_type}",
        ),
        (("a/{device_id}/{sensor_type}",), None, Scenario(bad=((Flaw.TIME, 1.0),)), "bad.time needs"),
        (("a/{device_id}",), None, Scenario(status_topic="s/{device_id}/{feed_key}"), "status.topic"),
    ],
)
def test_what_does_not_go_together_is_refused(
    templates: tuple[str, ...], shape: Shape | None, found: Scenario, says: str
) -> None:
    with pytest.raises(Unfit) as refused:
        plan_of(found, templates=templates, shape=shape)
    assert says in str(refused.value)


# Scenario files


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "scenarios").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_examples_are_scenarios_with_something_in_them(path: Path) -> None:
    assert scenario.load(path) != Scenario()
    assert path.name in (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")


def test_a_scenario_may_say_amounts_as_a_number_or_as_two() -> None:
    document = {
        "gap": {"chance": 0.1, "seconds": 5},
        "burst": {"chance": 1, "messages": [2, 3]},
        "jitter": 0.5,
    }
    found = scenario.read(document, "s.toml")
    assert (found.gap, found.burst, found.jitter) == (Fault(0.1, 5, 5), Fault(1, 2, 3), 0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("jitter = ", "s.toml is not TOML: "),
        ("jitter = -1", "s.toml: jitter is '-1'; it takes a number from 0 to 3600"),
        ("jitter = nan", "s.toml: jitter is 'nan'; it takes"),
        ("jitter = true", "s.toml: jitter is 'True'; it takes"),
        ("gaps = 1", "s.toml: there is no key 'gaps'; it takes jitter, gap,"),
        ("gap = 1", "s.toml: gap is '1'; it takes a table [gap] with chance, seconds"),
        ("gap = {chance = 2, seconds = 1}", "s.toml: gap.chance is '2'; it takes a number from 0 to 1"),
        ("gap = {seconds = 1}", "s.toml: gap.chance is missing; it takes"),
        ("gap = {chance = 1}", "s.toml: gap.seconds is missing; it takes a number from 0 to 86400, or two"),
        ("gap = {chance = 1, seconds = [3, 1]}", "s.toml: gap.seconds is '[3, 1]'; it takes"),
        ("gap = {chance = 1, seconds = [1, 2, 3]}", "s.toml: gap.seconds is '[1, 2, 3]'; it takes"),
        ("gap = {chance = 1, seconds = 'x'}", "s.toml: gap.seconds is 'x'; it takes"),
        (
            "gap = {chance = 1, second = 1}",
            "s.toml: there is no key 'gap.second'; it takes chance, seconds",
        ),
        ("bad = {nam = 1}", "s.toml: there is no key 'bad.nam'; it takes nan, null,"),
        ("bad = {nan = 0.6, null = 0.6}", "s.toml: the chances in bad add up to 1.2; together"),
        ("status = {}", "s.toml: status.topic is missing; it takes"),
        (
            "status = {topic = 's/{device_id}', retain = 1}",
            "s.toml: status.retain is '1'; it takes true or",
        ),
        ("death = {}", "s.toml: death.chance is missing; it takes"),
    ],
)
def test_a_bad_scenario_file_is_refused_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(text)
    with pytest.raises(Unfit) as refused:
        scenario.load(Path("s.toml"))
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_a_scenario_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"none\.toml cannot be read: No such file"):
        scenario.load(tmp_path / "none.toml")


# Values


def test_the_sample_gives_each_device_another_row_and_its_values_unchanged() -> None:
    found = feeds.recorded(feeds.SAMPLE, devices=4)
    assert found.sensors == ("temperature", "humidity", "light", "co2", "humidity_ratio", "occupancy")
    assert found.row(0, 0) == found.row(0, 1440)
    assert found.row(0, 0)[4] == ("0.00311002664087112", 0.00311002664087112)
    assert found.row(1, 0) == found.row(0, 360)


def test_a_running_number_without_a_name_and_dates_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text(
        '"date","Temperature","CO2","HumidityRatio"\n"140","2015-02-02 14:19:00",23.7,749,0.004\n'
    )
    found = feeds.recorded(path, devices=1)
    assert found.sensors == ("temperature", "co2", "humidity_ratio")
    assert found.row(0, 5) == (("23.7", 23.7), ("749", 749.0), ("0.004", 0.004))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rows"),
        ("a,b\n", "has no rows"),
        ("a,b\nx,y\n", "has the sensors none"),
        ("a,a\n1,2\n", "has the sensors a, a"),
        ("a/b\n1\n", "has the sensors a/b"),
        ("a,b\n1,2\n1,nan\n", "row 3 has a cell that is no number"),
        ("a,b\n1,2\n1\n", "row 3 has a cell that is no number"),
        ("a\n1\n\xff\n", "is not CSV"),
    ],
)
def test_a_file_of_values_that_cannot_be_used_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(Unfit) as refused:
        feeds.recorded(path, devices=1)
    assert says in str(refused.value)


def test_generated_values_wander_within_bounds_and_stay_the_same_within_a_row() -> None:
    found = Generated(random.Random(1))
    rows = [found.row(3, number) for number in range(2000)]
    assert found.row(3, 1999) == rows[-1]
    temperatures = [row[0][1] for row in rows]
    assert -20 <= min(temperatures) < max(temperatures) <= 60
    assert max(abs(a - b) for a, b in pairwise(temperatures)) < 1
    assert len(set(temperatures)) > 10


# Counting


def told(messages: Iterator[Message] | list[Message], *, lost: frozenset[int] = frozenset()) -> Tally:
    tally = Tally()
    for number, message in enumerate(messages):
        tally.publish(message)
        if number not in lost:
            tally.settle(message, accepted=True)
    return tally


def test_what_is_expected_is_what_the_parser_makes_of_it_with_copies_recognised(parser: Parser) -> None:
    messages = first(4000, plan_of(replace(EVERYTHING, death=0.0)))
    tally = told(messages)
    rows, dead_letters, seen, duplicates = 0, 0, set(), 0
    for message in messages:
        parsed = read(parser, message)
        again = message.recognisable and (message.topic, message.payload) in seen
        seen.add((message.topic, message.payload))
        rows += 0 if again else len(parsed.readings)
        dead_letters += bool(parsed.rejections)
        duplicates += again and not parsed.rejections
    assert duplicates > 50
    assert (tally.expected_rows, tally.expected_dead_letters) == (rows, dead_letters)
    figures = json.loads(json.dumps(tally.as_dict()))
    assert figures["expected"]["duplicates"] == duplicates
    assert figures["expected"]["entries"] == figures["accepted"]["messages"] == 4000
    assert figures["expected"]["rows_at_most"] == rows
    assert figures["not_accepted"] == 0


def test_a_message_that_was_not_accepted_makes_no_row_for_certain_but_may_make_some() -> None:
    messages = first(10, plan_of(Scenario(), templates=(TEMPLATES[-1],)))
    tally = told(messages, lost=frozenset({3, 4}))
    figures = tally.as_dict()["expected"]
    assert isinstance(figures, dict)
    assert (tally.not_accepted, figures["rows"], figures["rows_at_most"]) == (2, 16, 20)
    assert any("at most 20" in line for line in tally.lines())


def test_a_copy_stands_in_for_an_original_that_was_not_accepted() -> None:
    original = Message(0, "t", b"x", names=("a",), row=(("1", 1.0),), time_us=START_US, twin=1)
    copy = original._replace(copy=True)
    assert told([original, copy]).expected_rows == 1
    assert told([original, copy], lost=frozenset({0})).expected_rows == 1
    timeless = original._replace(time_us=None)
    assert told([timeless, timeless._replace(copy=True)]).expected_rows == 2


def test_what_is_sent_again_without_a_time_in_it_may_be_stored_twice() -> None:
    message = Message(0, "t", b"1", names=("a",), row=(("1", 1.0),))
    tally = told([message])
    tally.resend(message)
    figures = tally.as_dict()
    assert isinstance(figures["expected"], dict)
    assert (figures["resent"], figures["expected"]["rows_at_most"]) == (1, 2)


# The command line, without a broker


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No DATABASE_URL, and no signal handlers that outlive the test."""
    for name in ("DATABASE_URL", "REDIS_URL", "MQTT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mqtt.simulate.stop_on_signals", lambda _: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("url", "arguments", "says"),
    [
        ("", [], "MQTT_URL is not set; it takes"),
        ("mqtt://broker.example", [], "MQTT_URL names a broker at 'broker.example', not on this machine"),
        ("mqtt://192.0.2.1", [], "add --yes-load-this-broker"),
        ("mqtt://localhost", ["--topics", ","], "--topics is empty"),
        ("mqtt://[::1]", ["--topics", "a/b"], "the topic template 'a/b' cannot be used"),
        ("mqtt://127.0.0.9", ["--prefix", "a/"], "--prefix is 'a/'"),
        ("mqtt://localhost", ["--scenario", "none.toml"], "none.toml cannot be read"),
        ("mqtt://localhost", ["--data", "none.csv"], "none.csv cannot be read"),
        ("mqtt://localhost", ["--manifest", "none/m"], "--manifest none/m cannot be written"),
        ("mqtt://192.0.2.1", ["--yes-load-this-broker", "--topics", "x"], "the topic template 'x'"),
    ],
)
def test_a_command_that_cannot_work_ends_with_status_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    arguments: list[str],
    says: str,
) -> None:
    if url:
        monkeypatch.setenv("MQTT_URL", url)
    assert main.main(["simulate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sluice: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--rate", "nan"], ["--devices", "0"], ["--for", "-1"], ["--qos", "3"]]
)
def test_numbers_that_make_no_sense_are_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["simulate", *arguments])
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
