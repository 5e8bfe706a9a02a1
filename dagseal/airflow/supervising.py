"""Airflow's supervisor of a task that is no child of it: the task runs below dagseal's launcher, as another unix user.

The task speaks Airflow's protocol over a socket that the launcher gave it; the agent's connection brings its log and says how
it ended. Heartbeats, states, retries and the answers to requests are Airflow's own code; what is ours:

- a request is answered only if `filtering` says so;
- signals and kills become `cancel`; if that does not help, the connection is closed, which kills the task's whole tree;
- the log's records go where Airflow puts a task's stdout, stderr and structured log;
- the agent's `ended` is the process's end. `exit_code` says which one means that Airflow may believe the task's own word.

Promise: a task that was refused, cancelled, lost or killed never counts as a success, and a refusal is not retried.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from airflow.sdk.execution_time.supervisor import (
    ActivitySubprocess,
    ProcessTracker,
    length_prefixed_frame_reader,
    log,
)

from dagseal.airflow import filtering
from dagseal.airflow.agentlink import MAX_GRACE_SECONDS, AgentLink, Ended, Log, Refused
from dagseal.airflow.filtering import Asker
from dagseal.airflow.logforwarding import LogForwarder
from integrity.errors import FetchError

# How the task's own runner says that it came to an end; it told Airflow the same over its socket.
OWN_WORD = frozenset({"success", "failed", "skipped", "up_for_retry", "up_for_reschedule", "deferred"})
KILLED = -int(signal.SIGKILL)


class StillRunningError(Exception):
    """`EndTracker` has no end to tell yet."""


class EndTracker(ProcessTracker):  # type: ignore[misc]
    """What Airflow asks of a process, answered from the agent's connection. The pid is this process's: Airflow's API compares
    it between the start and the heartbeats, and it is what a host's administrator can find."""

    ProcessNotFound = ProcessLookupError
    TimeoutExpired = StillRunningError

    def __init__(self, link: AgentLink) -> None:
        self.exit_code: int | None = None
        self._link = link

    @property
    def pid(self) -> int:
        return os.getpid()

    def send_signal(self, s: signal.Signals) -> None:
        if self.exit_code is not None:
            raise ProcessLookupError
        with suppress(FetchError):  # its end is read from the same connection
            self._link.cancel(0 if s == signal.SIGKILL else MAX_GRACE_SECONDS)

    def wait(self, timeout: float | None) -> int:
        if self.exit_code is None:
            raise StillRunningError
        return self.exit_code


def by_its_own_word(ended: Ended) -> bool:
    """Whether the task came to its end by itself, as against killed, refused, lost or broken."""
    return ended.state in OWN_WORD and not ended.error


def exit_code(ended: Ended, *, told: bool) -> int:
    """The code with which Airflow's own runner would have ended: 0 when it told its state, whichever that was; of everything
    else only a failure follows. `told`: a state came over the task's socket."""
    if by_its_own_word(ended):
        return 0 if told else 1
    return ended.exit_code or 1


_with_fields: Any = attrs.define(kw_only=True)  # those of Airflow's class are not known to mypy


@_with_fields
class SealedActivity(ActivitySubprocess):  # type: ignore[misc]
    """One task. `supervise` begins it, Airflow's way of waiting sees it to its end."""

    if TYPE_CHECKING:
        _exit_code: int | None
        _last_heartbeat_attempt: float
        _last_successful_heartbeat: float
        _pending_terminal_state_msg: Any
    _link: AgentLink = attrs.field(repr=False)
    _asker: Asker
    _log_records: LogForwarder | None = attrs.field(default=None, init=False, repr=False)
    _started: bool = attrs.field(default=False, init=False)

    @classmethod
    def supervise(
        cls, link: AgentLink, requests: socket.socket, *, asker: Asker, what: Any, details: dict[str, Any], **more: Any
    ) -> SealedActivity:
        """Tell Airflow that the task starts, and then the agent. Raises what Airflow's API says against it."""
        tracker = EndTracker(link)
        self = cls(id=what.id, pid=tracker.pid, process=tracker, stdin=requests, link=link, asker=asker, **more)
        self._log_records = LogForwarder(self._get_target_loggers())
        self._open_sockets.update({requests: "requests", link.sock: "agent"})
        frames, on_close = length_prefixed_frame_reader(self.handle_requests(log), on_close=self._on_socket_closed)
        self.selector.register(
            requests, selectors.EVENT_READ, (lambda sock: tracker.exit_code is None and frames(sock), on_close)
        )
        self.selector.register(link.sock, selectors.EVENT_READ, (lambda sock: self._agent_says(frames), on_close))
        self._on_child_started(ti=what, **details)
        self._last_heartbeat_attempt = self._last_successful_heartbeat  # Airflow takes the start as one
        return self

    def send_msg(self, msg: Any, request_id: int, error: Any = None, **dump_opts: Any) -> None:
        """The first message is the startup's, after Airflow's yes: a long one does not fit into the socket, so who reads it is
        asked for first."""
        if not self._started:
            self._started = True
            with suppress(FetchError):  # the connection tells it, when it is read
                self._link.start()
        super().send_msg(msg, request_id, error, **dump_opts)

    def wait(self) -> int:
        """As Airflow's, which forwards signals to `self.pid`; that is this process."""
        with _forwarding(self._link):
            try:
                if self._exit_code is None:
                    self._monitor_subprocess()
            finally:
                self.selector.close()
                self._link.close()
                self.stdin.close()
        self._exit_code = self._exit_code if self._exit_code is not None else 1
        try:
            self.update_task_state_if_needed()
        finally:
            self._upload_logs()
        return int(self._exit_code)

    def kill(
        self, signal_to_send: signal.Signals = signal.SIGINT, escalation_delay: float = 5.0, force: bool = False
    ) -> None:
        """As Airflow's; and in the end the connection is closed, after which the agent leaves nothing of the task."""
        if self._started:
            super().kill(signal_to_send, escalation_delay=escalation_delay, force=force)
        if self._exit_code is None and (force or not self._started or signal_to_send == signal.SIGKILL):
            self.cleanup_sockets_after_kill()
            self._link.close()
            self._process.exit_code = self._exit_code = self._process.exit_code or KILLED

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        refusal = filtering.refusal(msg, self._asker)
        if not refusal:
            super()._handle_request(msg, log, req_id)
            return
        self.process_log.warning(f"dagseal: refused: {refusal}")
        error = ErrorResponse(error=ErrorType.PERMISSION_DENIED, detail={"message": refusal, "status_code": 403})
        self.send_msg(None, request_id=req_id, error=error)

    def _agent_says(self, frames: Callable[[socket.socket], bool]) -> bool:
        for event in self._link.arrived():
            match event:
                case Log(data=data) if self._log_records is not None:
                    self._log_records.feed(data)
                case Refused(error=error, detail=detail):
                    return self._end(Ended(state="refused", error=error, detail=detail, exit_code=1), frames)
                case Ended():
                    return self._end(event, frames)
        return True

    def _end(self, ended: Ended, frames: Callable[[socket.socket], bool]) -> bool:
        if self.stdin in self._open_sockets:  # all that the task ever said lies in it by now
            self.stdin.setblocking(False)
            with suppress(OSError):
                while frames(self.stdin):
                    pass
            self._on_socket_closed(self.stdin)
        if self._log_records is not None:
            self._log_records.close()
        told = self._terminal_state is not None or self._pending_terminal_state_msg is not None
        self._process.exit_code = exit_code(ended, told=told)
        if not by_its_own_word(ended):
            self._pending_terminal_state_msg = None
            self.process_log.error(f"dagseal: {ended.state}: {ended.error}: {ended.detail}")
        elif not told:
            self.process_log.error(f"dagseal: the task ended ({ended.state}) and told Airflow nothing: {ended.detail}")
        if ended.state == "refused" and ended.error != FetchError.slug:
            self._should_retry = False
        return False


@contextmanager
def _forwarding(link: AgentLink) -> Iterator[None]:
    def cancel(number: int, frame: object) -> None:
        log.info("Received signal, cancelling the task", signal=signal.Signals(number).name)
        with suppress(FetchError):
            link.cancel(MAX_GRACE_SECONDS)

    before = {number: signal.signal(number, cancel) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
