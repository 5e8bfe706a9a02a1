"""The nonces of signed requests that were accepted: none is accepted twice.

Promise: what `use` has taken it refuses until the signature has expired, and later it refuses for being expired. For that it
goes by its own clock's latest time: what it has forgotten is not accepted either when the clock is set back. The memory is
bounded: a key has at most `most_of_one` nonces at a time and is then told to wait, which costs only whoever has that key, as
nothing is kept that a key did not sign. A process begins with nothing; that what an earlier one accepted is not accepted
again is due to the epoch, which each process has its own of and every signature names (`submit_api.signed`).
"""

from __future__ import annotations

from collections import defaultdict

from submit_api.refusals import ReplayedRequestError, TooManyRequestsError


class Nonces:
    """By key, with the second in which each expires. No I/O: the time is an argument, in seconds."""

    def __init__(self, *, most_of_one: int) -> None:
        self._most = most_of_one
        self._of: dict[str, set[str]] = {}
        self._until: dict[int, list[tuple[str, str]]] = defaultdict(list)
        self._forgotten = 0  # all that expired until then

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def use(self, key_id: str, nonce: str, expires: int, now: int) -> None:
        """Raises `ReplayedRequestError`, or `TooManyRequestsError`, having kept nothing."""
        self._forget(now)
        mine = self._of.get(key_id, set())
        if nonce in mine or expires <= self._forgotten:
            raise ReplayedRequestError("this signed request was made already: its nonce is good for one")
        if len(mine) >= self._most:
            raise TooManyRequestsError(
                f"more than {self._most} requests within two minutes are signed by one key: wait"
            )
        self._of.setdefault(key_id, mine).add(nonce)
        self._until[expires].append((key_id, nonce))

    def _forget(self, now: int) -> None:
        """What expired before this second."""
        for second in [second for second in self._until if second < now]:
            for key_id, nonce in self._until.pop(second):
                self._of[key_id].discard(nonce)
                if not self._of[key_id]:
                    del self._of[key_id]
            self._forgotten = max(self._forgotten, second)
