"""What a client needs before it draws a feed: the domain with its categories, and a few users of the log."""

from pathlib import Path
from typing import Any

import pytest

from rayapp.cli.demo import open_page
from rayapp.contracts.config import Domain
from rayapp.pipeline.export import export
from rayapp.retrieval.index import CandidateIndex
from rayapp.root.facts import make_root
from rayapp.serving.keys import Role, add_key
from rayapp.serving.user_sample import logged_users, of_each_size
from tests.api_in_process import Running
from tests.films import item, table_of


def test_the_domain_is_told_with_its_actions_and_categories(api: Any, domain: Domain) -> None:
    async def test(graph: Running) -> None:
        told = (await graph.client.get("/v1/domain")).json()
        assert told["actions"][1:3] == [
            {"name": "save", "kind": "positive", "in_sequence": True},
            {"name": "hide", "kind": "negative", "in_sequence": True},
        ]
        assert [each["kind"] for each in told["attributes"]] == ["text", "categories", "number"]
        assert told["title"] == "title"
        assert told["categories"] == {"genres": [{"value": f"g{n}", "items": 10} for n in range(3)]}

    api(test)


def test_of_many_categories_the_most_frequent_are_told() -> None:
    items = [item(n, genres=[f"own {n}", "all", *(["half"] if n % 2 else [])]) for n in range(200)]
    index = CandidateIndex(table_of_any(items))
    assert index.categories(3) == {"genres": [("all", 200), ("half", 100), ("own 0", 1)]}
    gone = index.extended(index.table.with_items([item(n, genres=None) for n in range(200)]))
    assert gone.categories(3) == {}


def table_of_any(items: list[dict[str, Any]]) -> Any:
    """`table_of` for items of any genres: its vectors are of another item's."""
    plain = table_of([item(n) for n in range(len(items))])
    return plain.with_items(items)


def test_a_few_users_of_each_size_are_told_and_no_erased_one(api: Any, models: Any) -> None:
    client, admin = (add_key(models[0], role.value, role) for role in (Role.CLIENT, Role.ADMIN))

    async def test(graph: Running) -> None:
        keys = [{"Authorization": f"Bearer {key}"} for key in (client, admin)]
        graph.client.headers.update(keys[1])
        sizes = {"one": 1, "four": 4, "five": 5, "fifty": 50, "gone": 7}
        for user, count in sizes.items():
            for n in range(count):
                await graph.act(user, f"i{n % 30}", timestamp_ms=1_790_000_000_000 + n)
        assert (await graph.client.get("/v1/users:sample")).json() == {"users": []}, "the log has none yet"
        export(graph.service.root, graph.service.stages.sequences._store, 1)
        assert (await graph.client.delete("/v1/users/gone")).status_code == 204
        told = (await graph.client.get("/v1/users:sample")).json()["users"]
        assert [(row["user_id"], row["length"]) for row in told] == [
            ("one", 1),
            ("four", 4),
            ("five", 5),
            ("fifty", 50),
        ]
        refused = await graph.client.get("/v1/users:sample", headers=keys[0])
        assert refused.status_code == 403

    api(test, keys=True)


def test_a_sample_is_spread_over_sizes() -> None:
    lengths = {f"u{n:03}": n for n in range(200)}
    rows = of_each_size(lengths)
    assert [length for _, length in rows] == [1, 2, 3, 4, 5, 16, 27, 38, 50, 87, 124, 161]


def test_no_user_is_sampled_from_an_empty_log(tmp_path: Path, domain: Domain) -> None:
    make_root(tmp_path, domain, 4)
    assert logged_users(tmp_path) == []


@pytest.mark.parametrize(
    ("terminal", "display", "opens"), [(True, ":0", True), (True, "", False), (False, ":0", False)]
)
def test_the_demo_opens_the_page_where_somebody_can_see_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, display: str, opens: bool
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    open_page("http://127.0.0.1:8000")
    assert opened == ["http://127.0.0.1:8000"] * opens
