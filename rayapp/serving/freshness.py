"""How soon an action is seen: from the server's receipt to the first look-up that shows it. Time is an argument."""

from collections import OrderedDict
from typing import Final

MAX_WAITING: Final = 50_000
"""Users whose newest action nobody has looked up yet; beyond, the longest waiting are not measured."""


class Freshness:
    """Remembers what was committed and not looked up yet; one number a user."""

    def __init__(self) -> None:
        self._received_ms: OrderedDict[str, int] = OrderedDict()

    def committed(self, user_id: str, received_at_ms: int) -> None:
        """An action became durable. Of several unseen ones the first counts: it has waited longest."""
        self._received_ms.setdefault(user_id, received_at_ms)
        if len(self._received_ms) > MAX_WAITING:
            self._received_ms.popitem(last=False)

    def looked_up(self, user_id: str, now_ms: int) -> int | None:
        """Milliseconds that the user's oldest unseen action has waited, which this look-up ends; None without one."""
        received_ms = self._received_ms.pop(user_id, None)
        return None if received_ms is None else max(now_ms - received_ms, 0)
