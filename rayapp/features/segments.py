"""Groups of users by how much is known of them, which metrics are told for one by one."""

from typing import Final

CORE_ACTIONS: Final = 50
SEGMENTS: Final = {"cold": (0, 5), "casual": (5, CORE_ACTIONS), "core": (CORE_ACTIONS, 1 << 30)}
"""Actions in the user's sequence at the request."""
