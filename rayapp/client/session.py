"""A client of the HTTP API, and the choice of a genre and its films: what the demo and the probe of reactions share.

Knows nothing of what runs behind the URL.
"""

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
import numpy as np

from rayapp.contracts.config import Domain
from rayapp.contracts.errors import RayappError
from rayapp.contracts.schema import ActionKind, AttributeKind
from rayapp.features.content import Item
from rayapp.model.item_table import ItemTable


class SessionError(RayappError):
    """The server answered something else than asked; the message holds its words."""


class Session:
    """One user at the HTTP API."""

    def __init__(self, client: httpx.Client, user_id: str | None = None) -> None:
        self.client = client
        self.user_id = user_id or f"session-{uuid.uuid4().hex[:12]}"

    def act(self, item_id: str, action: str) -> None:
        """Posts one event; returns when the server says that it is durable.

        Raises:
            SessionError: the server did not take it; its words.
        """
        self.act_on([item_id], action)

    def act_on(self, item_ids: Sequence[str], action: str) -> None:
        """Posts an event for each item, the last one as of now and each a second after the one before.

        Raises:
            SessionError: the server did not take all; its words.
        """
        now_ms = time.time_ns() // 1_000_000
        events = [
            {
                "event_id": str(uuid.uuid4()),
                "user_id": self.user_id,
                "item_id": item_id,
                "action": action,
                "timestamp_ms": now_ms - 1_000 * before,
            }
            for before, item_id in zip(reversed(range(len(item_ids))), item_ids, strict=True)
        ]
        if events and (answer := self._post("/v1/events", events))["accepted"] != len(events):
            raise SessionError(f"not all events were accepted: {answer}")

    def feed(self, num_results: int, *, num_candidates: int = 200, exclude: Sequence[str] = ()) -> dict[str, Any]:
        """`POST /v1/recommendations`."""
        body = {"num_results": num_results, "num_candidates": num_candidates, "exclude_item_ids": list(exclude)}
        return self._post("/v1/recommendations", {"user_id": self.user_id, **body})

    def rank(self, item_ids: Sequence[str], model: str | None = None) -> dict[str, Any]:
        """`POST /v1/rank`, with the champion or the model behind an alias."""
        return self._post("/v1/rank", {"user_id": self.user_id, "item_ids": list(item_ids), "model": model})

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        answer = self.client.post(path, json=body)
        if answer.status_code != 200:
            raise SessionError(f"POST {path} answered {answer.status_code}: {answer.text}")
        result: dict[str, Any] = answer.json()
        return result


def strongest(domain: Domain, kind: ActionKind) -> str:
    """The action of that kind with the highest priority: the clearest word a user can say.

    Raises:
        SessionError: the domain has none.
    """
    of_kind = [a for a in domain.vocabulary.actions if a.kind is kind]
    if not of_kind:
        raise SessionError(f"the domain {domain.name} has no {kind} action")
    return max(of_kind, key=lambda a: a.priority).name


class Genres:
    """The items by the domain's first categorical attribute, most liked first."""

    def __init__(self, domain: Domain, table: ItemTable) -> None:
        self.attribute = next(a.name for a in domain.attributes if a.kind is AttributeKind.CATEGORIES)
        self.items = {str(item["item_id"]): item for item in table.items}
        likes = dict(zip(self.items, table.likes_N[1:].tolist(), strict=True))
        self._by_likes = sorted(self.items, key=lambda i: (-likes[i], i))

    def of(self, item: Item) -> list[str]:
        return list(item.get(self.attribute) or ())

    def has(self, genre: str, item_id: str) -> bool:
        """Whether the item has the genre; no for one that is newer than the table."""
        return genre in self.of(self.items.get(item_id, {}))

    def share(self, genre: str, item_ids: Iterable[str]) -> float:
        """The share of these items that have the genre."""
        hits = [self.has(genre, i) for i in item_ids]
        return sum(hits) / len(hits) if hits else 0.0

    def sizes(self) -> dict[str, int]:
        """Items of each genre, by name."""
        counts = Counter(name for item in self.items.values() for name in self.of(item))
        return dict(sorted(counts.items()))

    def mixture(self, genre: str, count: int, fewest: int, most: int) -> list[str]:
        """The `count` most liked items of all, but that at least `fewest` and at most `most` of them have the genre."""
        of_genre = self.liked(genre, len(self.items))
        natural = sum(genre in self.of(self.items[i]) for i in self.most_liked(count))
        chosen = of_genre[: min(max(natural, fewest), most)]
        others = [i for i in self._by_likes if genre not in self.of(self.items[i])]
        return chosen + others[: count - len(chosen)]

    def common_in(self, item_ids: Iterable[str], count: int) -> list[str]:
        """The `count` genres that most of these items have."""
        counts = Counter(name for i in item_ids for name in self.of(self.items[i]))
        return [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))][:count]

    def most_liked(self, count: int) -> list[str]:
        """The most liked items of all."""
        return self._by_likes[:count]

    def liked(self, genre: str, count: int, *, exclude: Iterable[str] = ()) -> list[str]:
        """The genre's most liked items outside `exclude`."""
        left_out = set(exclude)
        return [i for i in self._by_likes if genre in self.of(self.items[i]) and i not in left_out][:count]

    def mixed(self, count: int, *, seed: int, exclude: Iterable[str] = ()) -> list[str]:
        """Items of any genre, drawn from all outside `exclude`."""
        left_out = set(exclude)
        others = [i for i in self._by_likes if i not in left_out]
        return [others[n] for n in np.random.default_rng(seed).permutation(len(others))[:count]]

    def pure(self, genre: str, count: int, *, exclude: Iterable[str] = ()) -> list[str]:
        """Items that say "this genre" most plainly: the fewest other genres, then the most liked."""
        liked = self.liked(genre, len(self.items), exclude=exclude)
        return sorted(liked, key=lambda i: len(self.of(self.items[i])))[:count]
