"""How fast requests may go: budgets that no minute exceeds, and pauses that a server asks for."""

import threading
from collections import deque
from collections.abc import Callable

MINUTE = 60.0  # seconds


class Budget:
    """At most `limit` in any minute. A full bucket that refills would let twice as much pass in its first minute."""

    def __init__(self, limit: float):
        self._limit = limit
        self._booked: deque[tuple[float, float]] = deque()  # (time, amount), of the last minute
        self._total = 0.0

    def earliest(self, at: float, amount: float) -> float:
        """The first time from `at` on when `amount` still goes; more than the limit goes when nothing else does."""
        while self._booked and (self._booked[0][0] <= at - MINUTE or self._total + amount > self._limit):
            time, old = self._booked.popleft()
            self._total = self._total - old if self._booked else 0.0
            at = max(at, time + MINUTE)
        return at

    def book(self, at: float, amount: float) -> None:
        """Takes `amount` at a time that `earliest` gave."""
        self._booked.append((at, amount))
        self._total += amount


class Pace:
    """Lets callers from many threads pass one by one, in the order of their coming.

    Args:
      limits: a minute's budget of each kind of amount, None for no limit.
      clock: seconds that only grow.
      sleep: waits so many seconds.
    """

    def __init__(self, limits: tuple[float | None, ...], clock: Callable[[], float], sleep: Callable[[float], None]):
        self._budgets = [Budget(limit) if limit is not None else None for limit in limits]
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next = clock()

    def wait(self, *amounts: float) -> None:
        """Returns when so much of each kind may be sent."""
        with self._lock:
            at = max(self._clock(), self._next)
            used = [(budget, amount) for budget, amount in zip(self._budgets, amounts) if budget and amount]
            for budget, amount in used:
                at = budget.earliest(at, amount)
            for budget, amount in used:
                budget.book(at, amount)
            self._next = at
        if (delay := at - self._clock()) > 0:
            self._sleep(delay)

    def pause(self, seconds: float) -> None:
        """Nobody who comes after this passes for so long."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
