"""The evaluator of EMQX's rules is held to what EMQX's documentation and its own tests say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emqx_eval import RuleFailed, apply, matches
from tests.emqx_rules import published, render, render_log, text_of
from tests.emqx_sql import UNDEFINED, Unknown, parse_rule


def value_of(expression: str, **columns: Any) -> Any:
    (selected,) = apply(parse_rule(f'SELECT {expression} as x FROM "t"'), columns)
    return selected["x"]


# docs.emqx.com, "Built-in SQL Functions", and EMQX's emqx_rule_funcs_SUITE
@pytest.mark.parametrize(
    ("expression", "columns", "result"),
    [
        ("tokens(s, '/')", {"s": b"/a/b//c/"}, [b"a", b"b", b"c"]),
        ("split(s, '/', 'notrim')", {"s": b"/a/b//c/"}, [b"", b"a", b"b", b"", b"c", b""]),
        ("split(s, '/', 'notrim')", {"s": b"/"}, [b"", b""]),
        ("split(s, '/', 'notrim')", {"s": b""}, [b""]),
        ("nth(1, split('a/b', '/', 'notrim'))", {}, b"a"),
        ("replace('a:b:c', ':', '.')", {}, b"a.b.c"),
        ("hexstr2bin('6364f')", {}, bytes([6, 54, 79])),
        ("hexstr2bin('a')", {}, bytes([10])),
        ("hexstr2bin('0102')", {}, bytes([1, 2])),
        ("subbits(b, 1, 1)", {"b": b"\xff"}, 1),
        ("subbits(b, 1, 5)", {"b": b"\xff"}, 31),
        ("subbits(b, 5, 4)", {"b": b"\xf3"}, 3),
        ("subbits(b, 9, 8)", {"b": b"\x01"}, UNDEFINED),
        ("subbits(b, 1, 32)", {"b": b"\x00\x00\x01\x02\xff"}, 258),
        ("mod(3, 2)", {}, 1),
        ("coalesce(a, 0)", {}, 0),
        ("coalesce(a, 0)", {"a": None}, None),
        ("coalesce(a, 0)", {"a": b""}, b""),
        ("is_not_null_var(a)", {}, False),
        ("is_not_null_var(a)", {"a": None}, False),
        ("is_not_null_var(a)", {"a": b"null"}, True),
        ("is_num(a)", {"a": 1.5}, True),
        ("is_num(a)", {"a": True}, False),
        ("sha256('')", {}, b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("base64_encode('some val')", {}, b"c29tZSB2YWw="),
        ("json_encode(a)", {"a": {"a": 1}}, b'{"a":1}'),
        ("json_encode(a)", {"a": b"open"}, b'"open"'),
        ("json_encode(a)", {"a": None}, b"null"),
        ("json_encode(a)", {"a": True}, b"true"),
        ("json_encode(a)", {"a": b"\xff"}, '"\ufffd"'.encode()),
        ("payload.a.b", {"payload": b'{"a": {"b": "c"}}'}, b"c"),
        ("payload.a.b", {"payload": b'{"a": 1}'}, UNDEFINED),
        ("payload.a", {"payload": b'{"a": null}'}, None),
        ("map_to_entries(payload.m)", {"payload": b'{"m": {"k": 1}}'}, [{"key": b"k", "value": 1}]),
    ],
)
def test_a_function_gives_what_emqx_documents(
    expression: str, columns: dict[str, Any], result: Any
) -> None:
    found = value_of(expression, **columns)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(("payload", "result"), [(b'{"x": 1}', 1), (b'{"y": 1}', 7), (b'{"x": null}', 7)])
def test_case_takes_the_first_branch_that_holds(payload: bytes, result: int) -> None:
    expression = "CASE WHEN is_not_null_var(payload.x) THEN payload.x ELSE 7 END"
    assert value_of(expression, payload=payload) == result


@pytest.mark.parametrize(
    "expression",
    ["nth(3, split('a/b', '/', 'notrim'))", "nth(0, tokens('a', '/'))", "sha256(a)", "map_to_entries(a)"],
)
def test_an_argument_that_a_function_does_not_take_fails_the_rule(expression: str) -> None:
    with pytest.raises(RuleFailed):
        value_of(expression, a=1)


@pytest.mark.parametrize("payload", [b"", b"21.5x", b'{"x": NaN}', b'{"x": 1e999}', b"\xff"])
def test_a_look_into_a_payload_that_is_no_json_fails_the_rule(payload: bytes) -> None:
    with pytest.raises(RuleFailed):
        value_of("payload.x", payload=payload)


def test_foreach_do_incase_gives_one_map_for_each_row_that_meets_the_condition() -> None:
    """EMQX's emqx_rule_engine_SUITE, t_sqlparse_foreach_4, with its third case's rows that are no maps."""
    rule = parse_rule(
        "foreach payload.sensors as s do s.cmd as msg_type, s.name as name "
        'incase is_not_null_var(s.cmd) from "t/a"'
    )
    rows = b'{"sensors": [{"cmd":"1", "name":"n1"}, {"cmd":"2"}, {"name":"n3"}]}'
    assert apply(rule, {"payload": rows}) == [
        {"msg_type": b"1", "name": b"n1"},
        {"msg_type": b"2", "name": UNDEFINED},
    ]
    assert apply(rule, {"payload": b'{"sensors": [1, 2]}'}) == []
    assert apply(rule, {"payload": b'{"sensors": 1}'}) == []


def test_a_condition_sees_what_was_selected_before_the_column_of_that_name() -> None:
    rule = parse_rule("SELECT 'b' as a, a as c FROM \"t\" WHERE a = 'b' AND a <> 'x' OR a = 'y'")
    assert apply(rule, {"a": b"a"}) == [{"a": b"b", "c": b"b"}]
    assert apply(parse_rule("SELECT a FROM \"t\" WHERE a = 'b'"), {"a": b"a"}) == []


@pytest.mark.parametrize(
    "sql",
    [
        'SELECT * FROM "t"',
        'SELECT a + 1 as x FROM "t"',
        'SELECT upper(a) FROM "t"',
        "SELECT a as x FROM 't'",
        'SELECT a x FROM "t"',
        'SELECT a.b FROM "t"',
        'SELECT a[1] as x FROM "t"',
        'SELECT now_timestamp() as x FROM "t"',
        'SELECT a as x FROM "t" -- why',
        'SELECT true as x FROM "t"',
        'FOREACH a as s FROM "t"',
        'SELECT a as x FROM "t" WHERE not b',
    ],
)
def test_what_the_evaluator_does_not_know_it_refuses(sql: str) -> None:
    with pytest.raises(Unknown):
        apply(parse_rule(sql), {"a": b"1"})


@pytest.mark.parametrize("condition", ["a > 'x'", "a = 1", "b = 'x'"])
def test_a_comparison_that_emqx_would_convert_for_is_refused(condition: str) -> None:
    with pytest.raises(Unknown):
        apply(parse_rule(f'SELECT a FROM "t" WHERE {condition}'), {"a": b"1"})


@pytest.mark.parametrize(
    ("call", "arguments"), [("upper(a)", 1), ("sha256(a, a)", 2), ("split(a, '/')", 2)], ids=str
)
def test_a_function_that_is_not_known_is_refused(call: str, arguments: int) -> None:
    with pytest.raises(Unknown):
        value_of(call, a=b"x")


@pytest.mark.parametrize(
    ("topic", "pattern", "result"),
    [
        ("pico/t/d", "pico/+/+", True),
        ("pico//", "pico/+/+", True),
        ("pico/t", "pico/+/+", False),
        ("pico/t/d/x", "pico/+/+", False),
        ("$SYS/x/status", "+/+/status", False),
        ("pico/T/d", "pico/t/+", False),
    ],
)
def test_filters_match_as_in_mqtt(topic: str, pattern: str, result: bool) -> None:
    assert matches(topic, pattern) is result


# emqx_utils_conv_tests, emqx_placeholder_SUITE
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"abc\xff", b"abc\xff"),
        (1, b"1"),
        (10**30, b"1" + b"0" * 30),
        (2.0, b"2.0"),
        (1.0, b"1.0"),
        (21.5, b"21.5"),
        (0.1, b"0.1"),
        (1e-11, b"0.0"),
        (1.23456789012345, b"1.2345678901"),
        (-0.5, b"-0.5"),
        (True, b"true"),
        (False, b"false"),
        (None, b"null"),
        (UNDEFINED, b"undefined"),
        ({"a": 1}, b'{"a":1}'),
        ([{"a": 1}], b'[{"a":1}]'),
    ],
)
def test_a_value_is_rendered_as_emqx_renders_it(value: Any, text: bytes) -> None:
    assert text_of(value) == text
    assert render("a:${v},b", {"v": value}) == b"a:" + text + b",b"


def test_what_looks_like_a_placeholder_and_is_none_stays() -> None:
    assert render("a:$a,b:b},c:{c},d:${d", {"a": 1}) == b"a:$a,b:b},c:{c},d:${d"
    assert render("${a}${b}", {"a": 1}) == b"1undefined"


@pytest.mark.parametrize("template", ["${.}", "${a.b}", "${ a }"])
def test_a_placeholder_that_is_a_path_is_refused(template: str) -> None:
    with pytest.raises(Unknown):
        render(template, {"a": 1})


def test_in_a_log_every_variable_is_json() -> None:
    template = '{"a":${a},"b":${b},"c":${c}}'
    assert render_log(template, {"a": b'say "x"', "b": 1e-11}) == b'{"a":"say \\"x\\"","b":1e-11,"c":null}'


def test_a_message_has_the_columns_that_emqx_gives_it() -> None:
    columns = published("a/b", b"\xff", 5)
    assert (columns["topic"], columns["payload"], columns["publish_received_at"]) == (b"a/b", b"\xff", 5)
