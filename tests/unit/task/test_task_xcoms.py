"""The XComs of one launch."""

from __future__ import annotations

import pytest

from launcher.task.xcoms import MAX_KEY_CHARS, MAX_PUSHED_BYTES, XComLimitError, XComs

GRANTED = [
    {"task_id": "up", "map_index": -1, "key": "k", "value": '{"a": 1.5}'},
    {"task_id": "mapped", "map_index": 10, "key": "k", "value": '"ten"'},
    {"task_id": "mapped", "map_index": 2, "key": "k", "value": '"two"'},
    {"task_id": "me", "map_index": 0, "key": "k", "value": '"of an earlier try"'},
    {"task_id": "me", "map_index": 1, "key": "k", "value": '"of my neighbour"'},
]


def xcoms() -> XComs:
    return XComs(GRANTED, task_id="me", map_index=0)


def test_values_are_found_by_task_key_and_index() -> None:
    ours = xcoms()
    assert ours.one("up", "k", None) == ours.one("up", "k", -1) == {"a": 1.5}
    assert ours.one("up", "other", None) is None
    assert ours.one("mapped", "k", None) is None
    assert ours.all("mapped", "k") == ["two", "ten"]


def test_what_another_dags_task_of_the_same_name_pushed_is_not_ours() -> None:
    ours = XComs(
        [{**GRANTED[3], "dag_id": "other"}, {**GRANTED[0], "dag_id": "other", "value": "9"}], task_id="me", map_index=0
    )
    assert ours.one("me", "k", 0) is None
    assert ours.one("me", "k", 0, dag_id="other") == "of an earlier try"
    ours.push("k", "mine")
    assert (ours.all("me", "k"), ours.all("me", "k", dag_id="other")) == (["mine"], ["of an earlier try"])
    assert ours.one("up", "k", -1, dag_id="other") == 9
    assert ours.one("up", "k", -1) is None


def test_a_new_try_begins_without_the_last_ones() -> None:
    ours = xcoms()
    assert ours.all("me", "k") == ["of my neighbour"]
    ours.push("k", "mine")
    assert ours.all("me", "k") == ["mine", "of my neighbour"]
    ours.delete("k")
    assert ours.pushed() == []


def test_pushes_are_kept_as_json_in_the_order_of_their_keys() -> None:
    ours = xcoms()
    ours.push("b", [1, "\ud800"])
    ours.push("a", None)
    assert ours.pushed() == [{"key": "a", "value": "null"}, {"key": "b", "value": '[1, "\\ud800"]'}]


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY_CHARS + 1), "a\nb", "\ud800"])
def test_a_key_that_a_result_cannot_hold_is_refused(key: str) -> None:
    with pytest.raises(XComLimitError, match="key"):
        xcoms().push(key, 1)


def test_a_refused_push_leaves_the_earlier_ones() -> None:
    ours = xcoms()
    ours.push("a", 1)
    with pytest.raises(XComLimitError, match="push a reference"):
        ours.push("b", "x" * MAX_PUSHED_BYTES)
    assert ours.pushed() == [{"key": "a", "value": "1"}]
