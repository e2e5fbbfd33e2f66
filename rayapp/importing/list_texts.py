"""A list that stands in a file as text, as JSON or Python writes it."""

import ast
import json
import re
from typing import Any, Final

LONGEST: Final = 1 << 20
NO_COMMA: Final = re.compile(r"""['"]\s+['"]""")
"""numpy prints its arrays so, and Python would join two such texts into one."""


def list_of(text: str) -> list[str | None] | None:
    """The values of `["a", "b"]`, `['a', 'b']` or `[1, 2]`; None where the text is no such list."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")) or len(text) > LONGEST:
        return None
    values = _json(text)
    if values is None and not NO_COMMA.search(text):
        values = _python(text)
    if not isinstance(values, list) or any(isinstance(v, list | dict | tuple | set | complex) for v in values):
        return None
    return [None if v is None else _text(v) for v in values]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _python(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
