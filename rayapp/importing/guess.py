"""A first domain file from a sample of a team's own files: guesses by name and by value, to be read and corrected.

What can't be guessed is asked for by the option that names it; nothing is made up silently, and what is left out is
listed.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from rayapp.importing.files import expand, folder_columns
from rayapp.importing.guess_columns import NAMES, Sample, find, is_flag, quoted, sample, words
from rayapp.importing.guess_items import guess_items
from rayapp.importing.guess_lists import Layout, guess_lists, layout_lines, log_columns
from rayapp.importing.guess_times import read_log, time_lines
from rayapp.root.publish import PublishError

NEGATIVE: Final = ("hide", "dislike", "hate", "block", "report", "skip", "unfollow", "remove", "dismiss", "downvote")
NEUTRAL: Final = (
    *("click", "view", "open", "impression", "show", "play", "clicked", "viewed", "opened", "played", "detail", "pv"),
    *("visit", "page_view", "pageview", "product_view", "view_item", "item_view", "product_viewed", "start", "read"),
)
OUTSIDE: Final = ("impression", "show", "shown", "exposure", "impressions", "exposed", "display", "displayed")
GOALS: Final = (
    *("purchase", "buy", "bought", "order", "transaction", "checkout", "payment", "subscribe", "apply", "book"),
    *("rent", "save", "bookmark", "favorite", "favourite", "like", "share", "follow", "cart", "complete", "finish"),
)
"""Words of actions, the one that most feeds are made for first."""
MAX_ACTIONS: Final = 50
IMPRESSION_FIELDS: Final[tuple[str, ...]] = ("request_id", "user_id", "item_id", "timestamp", "surface")
FLAG_PREFIX: Final = re.compile(r"^(is|has|did|was)_")
SEEN: Final = "view"
"""The action of a row without any flag."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A first domain file, and what to tell of it."""

    text: str
    goal: str
    left_out: dict[str, list[str]]
    """Block of the file -> columns that it does not name."""
    requests: Path | None
    """Where the shown lists are: files of their own, or the events."""


def guess_domain(
    event_path: Path, item_path: Path | None, named: Mapping[str, str], request_path: Path | None = None
) -> Guess:
    """A domain file. `named` says the columns that the caller knows.

    Raises:
        PublishError: a file can't be read, or a needed column can't be told.
    """
    events = sample(event_path)
    found, flags = _found(events, named)
    columns = log_columns(events.table, found)
    rows = read_log(event_path, columns)
    actions = [*flags, SEEN] if flags else _actions(rows["action"], event_path, found["action"])
    lists = None if request_path is None else guess_lists(request_path, named, found["item_id"])
    goal = _goal(actions)
    items, items_left_out = guess_items(item_path, found["item_id"])
    lines = [
        f"# A first guess from {event_path.name}. Check every line; docs/data.md explains them.",
        f"name = {quoted(event_path.stem.split('.')[0] or 'mine')}",
        f"positive_head = {quoted(goal)} # the goal: the head that comparisons report first",
        *_times(rows, request_path, lists),
        'time_mask = "0s"',
        'time_zone = "UTC" # whose hour and day of the week models read: the name of a zone, like "Europe/Berlin"',
        "",
        *_vocabulary(actions),
        *items,
        *("", "[[events]]", *layout_lines(events, found), *_flag_lines(flags)),
    ]
    shown = [a for a in actions if a.lower() in OUTSIDE]
    here = {field: found[field] for field in IMPRESSION_FIELDS if field in found}
    if lists is not None:
        lines += ["", "[[requests]] # the lists that were shown", *lists.lines]
    elif shown:
        said = "" if "request_id" in found else "; those of one user at one moment are a list"
        lines += ["", f"[[requests]] # the lists that were shown, from the impressions among the events{said}"]
        lines += layout_lines(events, here)
        lines.append(f"only = {{ column = {quoted(found['action'])}, is = {json.dumps(shown, ensure_ascii=False)} }}")
    left_out = {
        "[items]": items_left_out,
        "[[events]]": [n for n in events.table.column_names if n not in {*found.values(), *flags.values()}],
        "[[requests]]": lists.left_out if lists else [],
    }
    lines += [f"# {block} leaves out: {', '.join(names)}" for block, names in left_out.items() if names]
    where = request_path or (event_path if shown else None)
    return Guess("\n".join(lines) + "\n", goal, {block: names for block, names in left_out.items() if names}, where)


def _found(events: Sample, named: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """`(field -> its column, of those that the events have; action -> its 0/1 column, where none names actions)`."""
    table = events.table
    found = {field: name for field in NAMES if (name := find(field, table, named))}
    if "event_id" in found and len(set(words(table[found["event_id"]]))) < table.num_rows:
        del found["event_id"]  # of something else: an event's own id is in one row
    flags: dict[str, str] = {}
    if "action" not in found:
        taken = {*found.values()}
        flags = {
            FLAG_PREFIX.sub("", name): name for name in table.column_names if name not in taken and is_flag(table[name])
        }
    missing = [field for field in ("user_id", "item_id", "timestamp", "action") if field not in found]
    if flags:
        missing = [field for field in missing if field != "action"]
    if missing:
        options = {"user_id": "--user", "item_id": "--item", "timestamp": "--time", "action": "--action"}
        raise PublishError(
            f"{events.path}: no column looks like {' or '.join(missing)}; it has {', '.join(table.column_names)}. "
            f"Name it with {', '.join(options[m] for m in missing)}. A file of which every row is one action, or which "
            "has a column for each, is read by `otherwise` and `flags`: see the built-in kuairand.toml and docs/data.md"
        )
    return found, flags


def _flag_lines(flags: Mapping[str, str]) -> list[str]:
    if not flags:
        return []
    columns = ", ".join(f"{quoted(action)} = {quoted(column)}" for action, column in flags.items())
    return [f"action = {{ flags = {{ {columns} }}, otherwise = {quoted(SEEN)} }} # a row without any flag is a {SEEN}"]


def _vocabulary(actions: Sequence[str]) -> list[str]:
    """The actions and the heads."""
    lines, positive = [], _positive(actions)
    for n, action in enumerate(actions):
        lines += ["[[actions]]", f"name = {quoted(action)}", f'kind = "{_kind(action)}" # positive, negative, neutral']
        lines += ["in_sequence = false"] if action.lower() in OUTSIDE else []
        lines += [f"priority = {n}", ""]
    for head in (*positive, *(a for a in actions if a not in positive and a.lower() not in OUTSIDE)):
        utility = -1.0 if _kind(head) == "negative" else 1.0 if _kind(head) == "positive" else 0.2
        lines += ["[[heads]]", f"name = {quoted(head)}", f"utility = {utility}", ""]
    return lines


def _positive(actions: Sequence[str]) -> list[str]:
    other = [a for a in actions if a.lower() not in OUTSIDE] or actions
    return [a for a in actions if _kind(a) == "positive"] or [other[0]]


def _goal(actions: Sequence[str]) -> str:
    """The positive action whose word stands first among GOALS; without such a word the most frequent."""
    positive = _positive(actions)
    rank = {a: next((n for n, goal in enumerate(GOALS) if goal in a.lower()), len(GOALS)) for a in positive}
    return min(positive, key=lambda action: rank[action])


def _kind(action: str) -> str:
    word = action.lower()
    if any(n in word for n in NEGATIVE):
        return "negative"
    return "neutral" if word.replace(" ", "_") in NEUTRAL or any(n in word for n in OUTSIDE) else "positive"


def _times(rows: pd.DataFrame, requests: Path | None, lists: Layout | None) -> list[str]:
    is_shown = rows["action"].map(lambda word: isinstance(word, str) and word.lower() in OUTSIDE).astype(bool)
    shown = rows[is_shown] if requests is None or lists is None else read_log(requests, lists.columns)
    return time_lines(rows[~is_shown], shown)


def _actions(read: pd.Series, path: Path, name: str) -> list[str]:
    """The words of the column, most frequent first; those of folders too, of which not every one has been read."""
    counted = Counter(word for word in read if word)
    folders = (folder_columns(file).get(name) for file in expand([path]))
    counted.update({word: 0 for word in folders if word})
    if not 0 < len(counted) <= MAX_ACTIONS:
        raise PublishError(
            f"{path}: column {name!r} holds {len(counted)} different values; actions are few. Name another"
        )
    return [word for word, _ in counted.most_common()]
