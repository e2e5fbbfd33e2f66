"""A domain that grows under what runs: an API that goes on, models that were trained before, logs of two widths."""

import asyncio
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayapp.contracts.config import FOREVER, HOUR_MS, Domain, Head
from rayapp.contracts.schema import (
    Action,
    ActionKind,
    Attribute,
    AttributeKind,
    Vocabulary,
    item_schema,
)
from rayapp.features.attributes import AttributeEncoder
from rayapp.features.requests import known_columns
from rayapp.features.statistics import Grid
from rayapp.loop.artifacts import make_windows, reads_all
from rayapp.loop.challenge import _shift
from rayapp.loop.gates import CHALLENGER
from rayapp.loop.limits import GateLimits
from rayapp.pipeline.export import export
from rayapp.pipeline.labels import label_requests
from rayapp.pipeline.statistics import count_statistics
from rayapp.pipeline.windows import is_current
from rayapp.registry.aliases import CHAMPION, promote
from rayapp.registry.models import load_model, trained_domain
from rayapp.root.catalogue import read_catalogue, read_users
from rayapp.root.catalogue_writer import merge
from rayapp.root.facts import apply_domain
from rayapp.root.logs import read_log
from rayapp.root.places import ITEMS, REQUESTS, STATISTICS, WINDOWS
from rayapp.root.publish import PublishError, read_manifest
from rayapp.statistics.known import load_newest, newest_statistics
from rayapp.statistics.observations import shown
from rayapp.training.evaluate import EvaluationSet, score_version
from tests.api_in_process import Running
from tests.conftest import T0, make_event
from tests.small_window import event_table, request_table
from tests.tiny_models import item_table, publish_version


def grown(domain: Domain) -> Domain:
    """Everything that a domain may gain, and another utility."""
    save, hide = domain.heads
    return dataclasses.replace(
        domain,
        vocabulary=Vocabulary((*domain.vocabulary.actions, Action(name="share", kind=ActionKind.POSITIVE))),
        heads=(dataclasses.replace(save, utility=-3.0), hide, Head(name="share", actions=("share",), utility=1.0)),
        attributes=(Attribute("price", AttributeKind.NUMBER), *domain.attributes),
        user_attributes=(Attribute("age", AttributeKind.NUMBER),),
        context_attributes=(Attribute("tab", AttributeKind.CATEGORIES),),
        half_lives_ms=(HOUR_MS, FOREVER),
    )


def test_an_api_follows_while_it_runs_and_old_models_answer_their_heads(api: Any, models: Any, domain: Domain) -> None:
    new = grown(domain)

    async def test(graph: Running) -> None:
        shared = {"user_id": "ann", "item_id": "i3", "action": "share", "timestamp_ms": 1_760_000_000_000}
        assert (await graph.post("/v1/events", shared)).status_code == 422
        before = await graph.post("/v1/rank", {"user_id": "ann", "item_ids": ["i1", "i2"], "explain": True})
        apply_domain(graph.service.root, new, 1)
        graph.service.stages.ranker._domain.refresh()  # as a call does that reads an appended action first
        await graph.api.follow(new)
        assert (await graph.post("/v1/events", shared)).json()["accepted"] == 1
        (row,) = (await graph.client.get("/v1/users/ann/sequence")).json()["events"]
        assert row["action"] == "share", "the store knew it before it stored it"

        ranked = await graph.post("/v1/rank", {"user_id": "bob", "item_ids": ["i1", "i2"], "explain": True})
        for body, utilities in ((before.json(), domain.utilities), (ranked.json(), new.utilities)):
            for item in body["items"]:
                assert list(item["probabilities"]) == ["save", "hide"], "the model has no other head"
                scored = np.dot(list(item["probabilities"].values()), utilities[:2])
                assert item["score"] == pytest.approx(scored, abs=1e-5)
        feed = await graph.feed("ann", num_results=4, explain=True, context={"tab": ["home"]})
        assert (feed["model_version"], feed["degraded"], feed["sequence"]["length"]) == ("a", False, 1)
        assert "i3" not in [item["item_id"] for item in feed["items"]], "the appended action counts as seen"

        item = {"title": "New", "genres": ["g1"], "year": 2026.0}
        assert (await graph.client.put("/v1/items/new", json=item)).json()["errors"][0]["field"] == "price"
        assert (await graph.client.put("/v1/items/new", json={**item, "price": 9.5})).status_code == 200
        assert (await graph.client.put("/v1/users/ann", json={"age": 33.0})).status_code == 200
        document = (await graph.client.get("/openapi.json")).json()
        schema = document["paths"]["/v1/items/{item_id}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
        assert "price" in schema["properties"]

        publish_version(graph.service.root, "c", "transact", new, item_table(domain))
        promote(graph.service.root, CHAMPION, "c")
        while feed["model_version"] != "c":
            await asyncio.sleep(0.05)
            aliases = {CHAMPION: "c"}
            await graph.service.live.follow(aliases, graph.service.stages)
            feed = await graph.feed("ann", num_results=4, explain=True)
        assert list(feed["items"][0]["probabilities"]) == ["save", "hide", "share"], "a new model brings the new head"
        await graph.service.answers.requests.flush()

    api(test)


def test_a_model_is_read_under_the_domain_that_it_was_trained_under(models: Any, domain: Domain) -> None:
    root, new = models[0], grown(domain)
    apply_domain(root, new, 1)
    model = load_model(root, "a", new)
    assert (model.domain, model.head_names) == (domain, ("save", "hide"))
    assert trained_domain(root, "a", new) == domain
    share = new.vocabulary.id_of("share")
    assert model.scorer.inputs.vocabulary_size == share, "its id is the first that the model does not know"
    (root / "models" / "a" / "schema.json").write_text(
        (root / "models" / "a" / "schema.json").read_text().replace('"domain"', '"domain_of_nobody"')
    )
    assert trained_domain(root, "a", new) == domain, "a model that does not tell: what the root was made for"
    fewer = dataclasses.replace(domain, heads=domain.heads[:1])
    with pytest.raises(PublishError, match="has the heads"):
        load_model(root, "a", fewer)


def test_rows_of_the_log_may_know_the_first_heads_alone(domain: Domain) -> None:
    matrix = known_columns(np.arange(5, dtype=np.float32), np.array([2, 1]), np.array([2, 1]), 3)
    np.testing.assert_array_equal(matrix, [[0, 1, np.nan], [2, 3, np.nan], [4, np.nan, np.nan]])
    new = grown(domain)
    of_old = {"request_id": "r1", "user_id": "u", "timestamp_ms": T0, "item_ids": ["a", "b"], "labels": [0, 1, 1, 0]}
    of_new = {**of_old, "request_id": "r2", "user_id": "v", "labels": [0, 1, 0, 1, 0, 1]}
    log = event_table(
        [
            {"event_id": f"{user}-{action}", "user_id": user, "item_id": "a", "action": action, "timestamp_ms": T0 + 1}
            for user in ("u", "v")
            for action in ("share", "save")
        ]
    )
    labels = label_requests(request_table([of_old, of_new]), log, new).matrix()
    assert labels.tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0], [1, 0, 1]], "flags where there are flags, else events"
    kinds = shown(request_table([of_old, of_new]), new, Grid.of(new))[1].kind_E
    flags = np.bincount(kinds, minlength=7)[4:]
    assert flags.tolist() == [2, 2, 1]


def test_windows_and_statistics_are_made_anew_for_what_a_domain_gained(
    models: Any, domain: Domain, without_ray: None
) -> None:
    root, store = models
    new, span = grown(domain), (T0, T0 + 1000)
    store.append([make_event(n, action="save", at=T0 + n, item=f"i{n}") for n in range(3)])
    row = {"request_id": "r", "user_id": "u1", "timestamp_ms": T0 + 5, "item_ids": ["i1"]}
    store.log_requests([row])
    export(root, store, T0)
    assert make_windows(root, domain, [span])
    assert not make_windows(root, domain, [span])
    (name,) = [path.name for path in (root / WINDOWS).iterdir()]
    assert read_manifest(root / WINDOWS / name)["attribution_ms"] == domain.attribution_ms
    counted = newest_statistics(root, domain)
    assert is_current(root, name, domain)

    apply_domain(root, new, 1)
    with pytest.raises(PublishError, match="no statistics of these heads and half-lives"):
        load_newest(root, new)
    assert make_windows(root, new, [span])
    assert read_manifest(root / WINDOWS / name)["heads"] == ["save", "hide", "share"]
    assert load_newest(root, new).columns.num_half_lives == 2
    assert load_newest(root, domain).columns.num_half_lives == 4, "the live model's own"
    assert newest_statistics(root, domain) == counted
    assert newest_statistics(root, new) != counted
    assert count_statistics(root, new)[1] is False
    for n in range(10, 16):
        store.append([make_event(n, action="save", at=T0 + n)])
        export(root, store, T0)
        count_statistics(root, new)
    assert newest_statistics(root, domain) == counted
    assert len(list((root / STATISTICS).glob("[!.]*"))) == 1 + 3
    make_windows(root, new, [span])
    assert newest_statistics(root, domain) != counted, "a live model is measured on the days of its challengers"
    logits = score_version(root, "a", name, new)
    assert logits.shape == (1, 1, 3)
    assert logits[0, 0, 0] != 0
    assert logits[0, 0, 2] == 0, "the model knows nothing of the new head"
    shutil.rmtree(root / "models")
    store.append([make_event(20, action="save", at=T0)])
    export(root, store, T0)
    count_statistics(root, new)
    assert newest_statistics(root, domain) is None, "no model reads them any more"
    assert len(list((root / STATISTICS).glob("[!.]*"))) == 3


def test_items_that_were_imported_before_have_no_value_of_what_was_added(root: Path, domain: Domain) -> None:
    rows = [{"item_id": "i1", "created_at_ms": 1, "title": "One", "genres": ["g"], "year": 1.0}]
    merge(root, ITEMS, pa.Table.from_pylist(rows, schema=item_schema(domain.attributes)), domain)
    apply_domain(root, grown(domain), 1)
    assert read_catalogue(root)["price"].to_pylist() == [None]
    nobody = read_users(root, grown(domain))
    assert AttributeEncoder.fit(read_catalogue(root), grown(domain).attributes).mean["price"] == 0.0
    assert AttributeEncoder.fit(nobody, grown(domain).user_attributes).mean == {"age": 0.0}
    log = read_log(root, REQUESTS, ["timestamp_ms", "tab"])
    assert AttributeEncoder.fit(log, grown(domain).context_attributes).categories == {"tab": []}
    assert not reads_all(item_table(domain), grown(domain))
    assert reads_all(item_table(grown(domain)), domain)
    rows = [{**rows[0], "item_id": "i2", "price": 3.0}]
    merge(root, ITEMS, pa.Table.from_pylist(rows, schema=item_schema(grown(domain).attributes)), grown(domain))
    assert read_catalogue(root)["price"].to_pylist() == [None, 3.0]


def test_gates_hold_a_model_of_more_heads_against_the_champion_by_the_heads_of_both(
    domain: Domain, rng: np.random.Generator
) -> None:
    new = grown(domain)
    window = EvaluationSet(
        np.zeros((4, 3, 3), np.float32), np.ones((4, 3), bool), np.zeros(4, np.uint64), np.zeros(4, np.int64),
        np.array(list("abcd"), object),
    )  # fmt: skip
    logit_RCH = rng.normal(size=(4, 3, 3)).astype(np.float32)
    old_RCH = logit_RCH.copy()
    old_RCH[:, :, 2] = 0
    gates = _shift(window, {CHAMPION: old_RCH, CHALLENGER: logit_RCH}, new, GateLimits(), 2)
    assert {gate.name for gate in gates} == {
        "mean feed score", "spread of the feed score", "predictions of save", "predictions of hide",
    }  # fmt: skip
    assert all(gate.passed for gate in gates), "the two say the same of the heads that both have"


def test_shown_items_rest_from_the_moment_that_the_domain_says_so(api: Any, domain: Domain) -> None:
    async def test(graph: Running) -> None:
        async def feed(**more: Any) -> dict[str, str]:
            answer = await graph.feed("ann", num_results=4, **more)
            await graph.service.answers.requests.flush()
            return {item["item_id"]: item["sources"][0] for item in answer["items"]}

        first = await feed()
        assert set(await feed()) == set(first), "off by default"
        rests = dataclasses.replace(domain, rest_ms=HOUR_MS, rest_items=1_000)
        apply_domain(graph.service.root, rests, 1)
        await graph.api.follow(rests)
        graph.service.stages.candidates._domain.refresh()
        lists = [await feed() for _ in range(8)]
        firsts = [item for one in lists[:7] for item in one]
        assert len(set(firsts)) == 28, "nothing is shown twice while there are others"
        assert set(lists[0]) <= set(first)
        again = {item for item, source in lists[7].items() if source == "shown_again"}
        assert again == set(list(lists[0])[-2:]), "only two were left that were never shown"
        graph.service.live.popular = sorted(firsts)
        graph.service.stages.candidates.fetch = broken  # type: ignore[method-assign]
        degraded = await feed()
        assert set(degraded.values()) == {"shown_again"}
        assert set(degraded) <= set(lists[0]) | set(lists[1]), "what was shown longest ago"
        graph.service.stages.sequences._store.erase("ann", 1 << 45)
        assert len(graph.service.stages.sequences._store.lookup("ann", shown=True).shown.hash_S) == 0

    api(test)


async def broken(*_: Any) -> None:
    raise RuntimeError("the stage died")
