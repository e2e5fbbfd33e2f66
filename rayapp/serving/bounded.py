"""Waits for a stage no longer than an answer may take."""

import asyncio
from typing import Any, Final

STAGE_TIMEOUT_S: Final = 5.0


async def or_none(answer: Any, timeout_s: float = STAGE_TIMEOUT_S) -> Any:
    """A stage's answer, or None when it fails or is late."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except Exception:
        return None
