"""What a real task writes: on which of its three pipes it arrives, in which order, and that secrets are masked on each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from task_rig import Grant, Warm

SECRET = 'hunter2"secret\\word'  # has to be masked also where JSON writes it otherwise
DAG = b"""
import logging, multiprocessing, os, subprocess, sys, threading, warnings
import structlog
from airflow.sdk import BaseHook, DAG, task

with DAG("d", schedule=None):
    @task
    def talk():
        log = logging.getLogger("mine.own")
        for number in range(50):
            print("out", number)
            print("err", number, file=sys.stderr)
            log.info("log %d", number)
        os.write(1, b"bare out\\n")
        os.write(2, b"bare err\\n")
        subprocess.run(["sh", "-c", "echo child out; echo child err >&2; ls /proc/self/fd >&2"], check=True)
        child = multiprocessing.get_context("fork").Process(target=lambda: log.warning("from a fork"))
        child.start(); child.join()
        thread = threading.Thread(target=lambda: structlog.get_logger("mine.too").error("from a thread", rows=[1, "x"]))
        thread.start(); thread.join()
        warnings.warn("old ways")

    @task
    def leak():
        secret = BaseHook.get_connection("shop").password
        class Shown:
            def __repr__(self):
                return f"<shown {secret}>"
        print("printed", secret)
        print("printed", secret, file=sys.stderr)
        logging.getLogger("mine.own").info("logged %s", secret)
        log = structlog.get_logger("mine.own")
        log.info("kept", value=secret, deep={"a": [{"b": {"c": {"d": {"e": {"f": secret}}}}}], (1, 2): Shown()}, shown=Shown())
        log.info("held", shown=Shown(), password="something")
        raise ValueError(f"leaks {secret}")

    @task
    def odd():
        log = structlog.get_logger("mine.own")
        looped = []
        looped.append(looped)
        log.info("looped", looped=looped)
        log.info("surrogate \\udc80 and\\nlines", n=float("nan"))
        log.info("bytes", raw=b"\\xff", nothing=None)
        log.info("long " + "x" * 200_000)
        print("no newline at the end", end="")

    talk(); leak(); odd()
"""


def run(runner: Warm, task: str) -> tuple[dict[str, str], list[dict[str, Any]], str]:
    connection = json.dumps({"conn_type": "http", "host": "shop.example", "password": SECRET})
    ran = runner.run("d.py", DAG, "d", task, Grant(connections={"shop": connection}))
    return ran.streams, [json.loads(line) for line in ran.streams["log"].splitlines()], ran.state


@pytest.fixture(scope="module")
def talk(runner: Warm) -> tuple[dict[str, str], list[dict[str, Any]], str]:
    return run(runner, "talk")


def test_each_arrives_where_it_was_written_and_in_its_order(talk: Any) -> None:
    streams, events, state = talk
    assert state == "success"
    assert streams["stdout"].splitlines() == [*(f"out {n}" for n in range(50)), "bare out", "child out"]
    err = streams["stderr"].splitlines()
    assert err[:52] == [*(f"err {n}" for n in range(50)), "bare err", "child err"]
    assert err[52:] == ["0", "1", "2", "3"], "what a child inherits; 3 is the folder that ls reads"
    own = [event["event"] for event in events if event["logger"] == "mine.own"]
    assert own == [*(f"log {n}" for n in range(50)), "from a fork"]


def test_structured_lines_have_a_time_a_level_a_logger_and_an_event(talk: Any) -> None:
    _, events, _ = talk
    assert all(set(event) >= {"timestamp", "level", "logger", "event"} for event in events)
    by_event = {event["event"]: event for event in events}
    assert (by_event["from a fork"]["level"], by_event["from a fork"]["logger"]) == ("warning", "mine.own")
    assert (by_event["from a thread"]["logger"], by_event["from a thread"]["rows"]) == ("mine.too", [1, "x"])
    assert by_event["old ways"]["logger"] == "py.warnings"
    times = [event["timestamp"] for event in events]
    assert times == sorted(times)


def test_airflows_groups_are_whole(talk: Any) -> None:
    _, events, _ = talk
    marks = [event["event"] for event in events if event["event"].startswith("::")]
    assert marks == ["::group::Pre Execute", "::endgroup::", "::group::Post Execute", "::endgroup::"]
    assert events[0]["event"] == "::group::Pre Execute" and events[0]["logger"] == "task"


def test_a_secret_is_masked_on_all_three(runner: Warm) -> None:
    streams, events, state = run(runner, "leak")
    assert state == "failed"
    whole = "".join(streams.values())
    for form in (SECRET, json.dumps(SECRET)[1:-1], repr(SECRET)[1:-1]):
        assert form not in whole
    assert "printed ***" in streams["stdout"]
    assert "printed ***" in streams["stderr"]
    by_event = {event["event"]: event for event in events}
    assert "logged ***" in by_event
    assert by_event["held"]["shown"] == "<shown ***>"
    assert by_event["held"]["password"] == "***"
    failure = next(event for event in events if "exception" in event)
    assert "ValueError: leaks ***" in failure["exception"]
    assert "raise ValueError(f" in failure["exception"], "with the line of the archive"


def test_whatever_is_logged_is_a_line_and_never_an_error(runner: Warm) -> None:
    streams, events, state = run(runner, "odd")
    assert state == "success"
    by_event = {event["event"][:10]: event for event in events}
    assert {"looped", "surrogate ", "bytes", "long xxxxx"} <= set(by_event)
    assert by_event["surrogate "]["event"] == "surrogate \udc80 and\nlines"
    assert len(by_event["long xxxxx"]["event"]) == 200_005
    assert streams["stdout"] == "no newline at the end"
