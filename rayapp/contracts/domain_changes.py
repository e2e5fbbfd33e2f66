"""What changes from one domain to the next, whether a root may follow, and what it means. Pure.

Allowed is what leaves the stored ids and rows as they are: they may gain meaning, never lose or change it. A refused
change says what to do instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rayapp.contracts.config import FOREVER, Domain, Head, day_name
from rayapp.contracts.schema import Action, Attribute
from rayapp.contracts.tables import duration_text

ABSENT: Final = "–"
NEXT_TRAINING: Final = "the next training goes by it; live models stay as they are"
FEEDS: Final = "feeds follow within seconds; nothing is trained anew"
READ_LATER: Final = (
    "the next training counts the statistics anew; a live model goes on reading those that it was trained on, until a "
    "retrained one takes its place"
)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference, by the key of the domain file."""

    key: str
    before: str
    after: str
    meaning: str
    """What happens now and later; of a refused change why it is refused, and what to do instead."""
    allowed: bool = True

    @property
    def words(self) -> str:
        """`key: before → after`."""
        return f"{self.key}: {self.before} → {self.after}"


class _Rule(NamedTuple):
    key: str
    said: Callable[[Any], str]
    meaning: str
    allowed: bool = True


def _duration(value_ms: int, endless: str) -> str:
    return f'"{endless if value_ms == FOREVER else duration_text(value_ms)}"'


def _half_lives(values_ms: Sequence[int]) -> str:
    return f"[{', '.join(_duration(value_ms, 'never') for value_ms in values_ms)}]"


def _table(values: Mapping[str, Any], said: Callable[[Any], str] = str) -> str:
    return "{ " + ", ".join(f"{name} = {said(value)}" for name, value in values.items()) + " }" if values else ABSENT


def _weights(values: Mapping[str, Mapping[str, float]]) -> str:
    return _table(values, lambda of_value: _table(of_value, "{:g}".format))


def _lasts(value_ms: int) -> str:
    return f'"{duration_text(value_ms)}"' if value_ms else '"0s"'


RULES: Final[dict[str, _Rule]] = {
    "name": _Rule("name", repr, "the feed is called so from now on; nothing else goes by it"),
    "title": _Rule("items.title", repr, "people are shown it within seconds"),
    "positive_head": _Rule(
        "positive_head",
        repr,
        f"comparisons and gates go by it from now on, and the orders of popular items; {READ_LATER}",
    ),
    "earliest_ms": _Rule("earliest", day_name, "what comes from now on is checked by it; what is stored stays"),
    "attribution_ms": _Rule(
        "attribution",
        _lasts,
        "reports and experiments go by it at once, windows from the next one that is built on. Windows that are there "
        "keep the labels of the old time, so trainings read mixed windows until the old ones are out of their days; to "
        "have all of one kind, move windows/ out of the root before the next training",
    ),
    "time_mask_ms": _Rule(
        "time_mask", _lasts, f"{NEXT_TRAINING}. Windows that are there hold histories for the old one alone"
    ),
    "user_weights": _Rule("user_weights", _weights, NEXT_TRAINING),
    "half_lives_ms": _Rule("half_lives", _half_lives, READ_LATER),
    "flag_delay_ms": _Rule("flag_delay", _lasts, READ_LATER),
    "left_out_of_statistics": _Rule("left_out_of_statistics", _table, READ_LATER),
    "statistics_step_ms": _Rule(
        "statistics_step",
        _lasts,
        "refused: the steps that replicas agreed on are stored by their number, which this length decides. Import into "
        "another --root to have another step",
        allowed=False,
    ),
    "time_zone": _Rule(
        "time_zone",
        repr,
        "refused: models were trained by the clocks of the old one, and logs hold the days of both alike. Import into "
        "another --root and train there",
        allowed=False,
    ),
    "seen_ms": _Rule("seen.actions", lambda value: _table(value, lambda ms: _duration(ms, "forever")), FEEDS),
    "seen_again_after_ms": _Rule(
        "seen.again_after", lambda value: '"forever"' if value is None else _lasts(value), FEEDS
    ),
    "rest_ms": _Rule("seen.rest", _lasts, f"{FEEDS}. What was shown before it was set does not rest"),
    "rest_items": _Rule("seen.rest_items", str, FEEDS),
    "caps": _Rule("caps", lambda value: _table(value, lambda cap: f"{cap.most} of {cap.of}"), FEEDS),
    "mix": _Rule("mix", lambda value: _table(value, "{:g}".format), FEEDS),
    "calibration": _Rule(
        "calibration", lambda value: f"{value.attribute} {value.weight:g}" if value else ABSENT, FEEDS
    ),
}
"""Fields of `Domain` whose value is compared as a whole."""
COMPARED_BY_NAME: Final = frozenset(
    {"vocabulary", "heads", "label_weights", "attributes", "user_attributes", "context_attributes"}
)
ATTRIBUTES: Final = {
    "attributes": (
        "items",
        "imports and the API take it within seconds (PUT must name it, null where an item has none). The next training "
        "makes new item vectors and starts from scratch; live models don't read it",
    ),
    "user_attributes": (
        "users",
        "imports and the API take it within seconds. The next training starts from scratch to read it; live models "
        "don't, and users have none until it is sent",
    ),
    "context_attributes": (
        "context",
        "requests may carry it within seconds. The next training builds its windows anew and starts from scratch to "
        "read it; live models don't, and the requests of the past have none",
    ),
}


def changes(old: Domain, new: Domain) -> list[Change]:
    """Every difference, in the order of the domain file; empty where the domains are equal."""
    found = [
        Change(rule.key, rule.said(getattr(old, name)), rule.said(getattr(new, name)), rule.meaning, rule.allowed)
        for name, rule in RULES.items()
        if getattr(old, name) != getattr(new, name)
    ]
    found += _actions(old.vocabulary.actions, new.vocabulary.actions)
    found += _heads(old, new)
    for name, (key, meaning) in ATTRIBUTES.items():
        found += _attributes(key, getattr(old, name), getattr(new, name), meaning)
    return found


def _order(key: str, old: Sequence[str], new: Sequence[str], why: str) -> Iterator[Change]:
    """Of names that are all kept: whether new ones stand behind them."""
    if set(old) <= set(new) and tuple(new[: len(old)]) != tuple(old):
        yield Change(
            key, ", ".join(old), ", ".join(new), f"refused: {why}; keep the order and append what is new", False
        )


def _actions(old: Sequence[Action], new: Sequence[Action]) -> Iterator[Change]:
    before, after = {a.name: a for a in old}, {a.name: a for a in new}
    yield from _order("actions", list(before), list(after), "the store holds actions by their place in the list")
    for name, action in before.items():
        if name not in after:
            yield Change(
                f"actions.{name}",
                action.kind,
                ABSENT,
                "refused: stored events have this action, also where it would only be renamed. Keep it, send it no "
                "more, and append the new name as an action of its own",
                False,
            )
            continue
        for field in ("kind", "in_sequence", "priority"):
            if (was := getattr(action, field)) != (now := getattr(after[name], field)):
                why = "refused: stored sequences and trained models mean the old one; append an action of another name"
                yield Change(f"actions.{name}.{field}", str(was), str(now), why, False)
    for name, action in after.items():
        if name not in before and set(before) <= set(after):
            yield Change(
                f"actions.{name}",
                ABSENT,
                action.kind,
                "events may have it within seconds, imports at once. A live model reads it as an action of an unknown "
                "kind on its item, until a retrained one takes its place",
            )


def _heads(old: Domain, new: Domain) -> Iterator[Change]:
    before, after = {h.name: h for h in old.heads}, {h.name: h for h in new.heads}
    yield from _order("heads", list(before), list(after), "logged probabilities and labels stand in the heads' order")
    weights = _loss_weights(old), _loss_weights(new)
    for name, head in before.items():
        if name not in after:
            why = (
                "refused: logged probabilities and labels stand in the heads' order, and models answer it. Keep it "
                "with utility = 0: then no feed goes by it"
            )
            yield Change(f"heads.{name}", _said_head(head), ABSENT, why, False)
            continue
        if head.actions != after[name].actions:
            why = "refused: its labels and its models mean the old actions; append a head of another name"
            yield Change(f"heads.{name}.actions", _said_head(head), _said_head(after[name]), why, False)
        if head.utility != after[name].utility:
            yield Change(f"heads.{name}.utility", f"{head.utility:g}", f"{after[name].utility:g}", FEEDS)
        was, now = (each.get(name, {}) for each in weights)
        if was != now:
            said = [_table(each, "{:g}".format) for each in (was, now)]
            yield Change(f"heads.{name}.loss_weights", said[0], said[1], NEXT_TRAINING)
    for name, head in after.items():
        if name not in before and set(before) <= set(after):
            yield Change(
                f"heads.{name}",
                ABSENT,
                _said_head(head),
                "the next training learns it and builds its windows anew; until that model is live, feeds are sorted "
                "by the old heads alone. Lists that came with flags know it by actions only",
            )


def _said_head(head: Head) -> str:
    return f"{' or '.join(head.actions)}, utility {head.utility:g}"


def _loss_weights(domain: Domain) -> dict[str, dict[str, float]]:
    """Head -> label -> weight, where it is not 1."""
    columns = (*domain.head_names, "impression")
    return {
        head: {label: weight for label, weight in zip(columns, row, strict=True) if weight != 1.0}
        for head, row in zip(domain.head_names, domain.label_weights, strict=False)
    }


def _attributes(key: str, old: Sequence[Attribute], new: Sequence[Attribute], meaning: str) -> Iterator[Change]:
    before, after = {a.name: a.kind for a in old}, {a.name: a.kind for a in new}
    for name, kind in before.items():
        if name not in after:
            why = "refused: stored rows and models have it. Keep it, and send it no more (null)"
            yield Change(f"{key}.{name}", kind, ABSENT, why, False)
        elif after[name] != kind:
            why = "refused: stored values and models are of the old kind; add an attribute of another name"
            yield Change(f"{key}.{name}", kind, after[name], why, False)
    for name, kind in after.items():
        if name not in before:
            yield Change(f"{key}.{name}", ABSENT, kind, meaning)
    if old != new and before == after:
        yield Change(f"{key} (order)", ", ".join(before), ", ".join(after), "nothing goes by it")
