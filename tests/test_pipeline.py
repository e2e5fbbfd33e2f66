"""Publishing, the bucketed log's windows and the reader: no Ray here, the pure parts only."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayapp.cli.summary import print_summary
from rayapp.contracts.config import Domain
from rayapp.contracts.schema import EVENT_SCHEMA
from rayapp.importing.domains import load_domain
from rayapp.importing.log_counts import LogCounts, Summary
from rayapp.pipeline.window_loader import RequestBatch, WindowReader
from rayapp.pipeline.windows import Window, build_bucket, check_closed
from rayapp.root.facts import make_root, read_root
from rayapp.root.publish import (
    PublishError,
    commit_log,
    exclusive,
    log_manifest,
    publish_directory,
    read_json,
    read_manifest,
)
from tests.conftest import T0, make_event
from tests.small_window import bucket_of_events, event_table, publish_window, request_table

DAY = 24 * 60 * 60 * 1000


def test_a_directory_is_published_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(directory: Path) -> dict[str, object]:
        (directory / "half").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        publish_directory(tmp_path / "d", fail)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".d.tmp-killed").mkdir()  # what a killed run leaves
    publish_directory(tmp_path / "d", lambda directory: {"n": (directory / "x").write_text("x")})
    assert read_manifest(tmp_path / "d") == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    with pytest.raises(PublishError, match="published already"):
        publish_directory(tmp_path / "d", lambda directory: {})


def test_a_log_s_manifest_is_a_compare_and_swap(tmp_path: Path) -> None:
    number, manifest = log_manifest(tmp_path)
    assert (number, manifest) == (0, {"files": []})
    commit_log(tmp_path, number, {"files": [1]})
    with pytest.raises(PublishError, match="another process"):
        commit_log(tmp_path, number, {"files": [2]})
    assert log_manifest(tmp_path) == (1, {"files": [1]})


def test_a_lock_refuses_a_second_holder_until_it_is_released(tmp_path: Path) -> None:
    with exclusive(tmp_path, "a test"), pytest.raises(PublishError, match="another process"):
        exclusive(tmp_path, "a test").__enter__()
    with exclusive(tmp_path, "a test"):
        pass


def test_json_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(PublishError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_a_root_keeps_its_domain(root: Path, domain: Domain) -> None:
    assert read_root(root) == (domain, 4)
    make_root(root, domain)
    with pytest.raises(PublishError, match="was made for the domain 'test'"):
        make_root(root, load_domain("movielens").domain)


def test_labels_join_actions_of_the_same_request_in_time(domain: Domain) -> None:
    events = event_table(
        [
            {
                "event_id": "1",
                "user_id": "u",
                "item_id": "b",
                "action": "save",
                "timestamp_ms": T0 + 5,
                "request_id": "r",
            },
            {
                "event_id": "2",
                "user_id": "u",
                "item_id": "c",
                "action": "hide",
                "timestamp_ms": T0 + DAY,
                "request_id": "r",
            },
            {
                "event_id": "3",
                "user_id": "u",
                "item_id": "a",
                "action": "save",
                "timestamp_ms": T0 + DAY + 1,
                "request_id": "r",
            },
            {
                "event_id": "4",
                "user_id": "u",
                "item_id": "a",
                "action": "save",
                "timestamp_ms": T0 + 6,
                "request_id": "other",
            },
            {
                "event_id": "5",
                "user_id": "u",
                "item_id": "a",
                "action": "click",
                "timestamp_ms": T0 + 7,
                "request_id": "r",
            },
            {
                "event_id": "6",
                "user_id": "u",
                "item_id": "z",
                "action": "save",
                "timestamp_ms": T0 + 8,
                "request_id": "r",
            },
        ]
    )
    requests = request_table([{"request_id": "r", "user_id": "u", "timestamp_ms": T0, "item_ids": ["a", "b", "c"]}])
    _, cut = build_bucket(bucket_of_events(events), requests, Window(T0, T0 + 1), domain)
    assert cut["labels"].to_pylist() == [[0, 0, 1, 0, 0, 1]]  # (save, hide) of a, b, c


def test_labels_that_a_source_carries_are_taken_as_they_are(domain: Domain) -> None:
    requests = request_table(
        [
            {"request_id": "r", "user_id": "u", "timestamp_ms": T0, "item_ids": ["a"], "labels": [0.0, 1.0]},
            {"request_id": "s", "user_id": "u", "timestamp_ms": T0 + 1, "item_ids": ["b", "a"]},
        ]
    )
    acted = {"event_id": "1", "user_id": "u", "item_id": "a", "action": "save", "timestamp_ms": T0 + 2}
    events = event_table([{**acted, "request_id": "s"}, {**acted, "event_id": "2", "request_id": "r"}])
    _, cut = build_bucket(bucket_of_events(events), requests, Window(T0, T0 + 2), domain)
    assert cut["labels"].to_pylist() == [[0, 1], [0, 0, 1, 0]]


def test_histories_hold_the_window_and_what_its_requests_reach_before_it(domain: Domain) -> None:
    events = event_table(
        [
            {"event_id": str(n), "user_id": "u", "item_id": f"i{n}", "action": "click", "timestamp_ms": T0 + n}
            for n in range(40)
        ]
        + [{"event_id": "x", "user_id": "absent", "item_id": "i", "action": "click", "timestamp_ms": T0}]
    )
    requests = request_table(
        [{"request_id": f"r{t}", "user_id": "u", "timestamp_ms": T0 + t, "item_ids": ["a"]} for t in (30, 35, 39)]
    )
    window = Window(T0 + 30, T0 + 38, history_length=8)
    histories, cut = build_bucket(bucket_of_events(events), requests, window, domain)
    assert histories["user_id"].to_pylist() == ["u"]
    assert histories["item_id"].to_pylist()[0] == [f"i{n}" for n in range(22, 38)]  # 8 before the window, and its own
    assert cut["request_id"].to_pylist() == ["r30", "r35"]
    assert cut["end"].to_pylist() == [8, 13]
    assert cut["start"].to_pylist() == [0, 5]


def fingerprints(batches: list[RequestBatch]) -> list[tuple[object, ...]]:
    return [
        (
            request,
            batch.requests.sequences.hash_of(n),
            tuple(batch.requests.take(np.array([n])).candidate_hash_N.tolist()),
        )
        for batch in batches
        for n, request in enumerate(batch.request_id_B)
    ]


def test_an_epoch_holds_every_request_once_in_an_order_fixed_by_seed_and_epoch(root: Path, domain: Domain) -> None:
    reader = publish_window(root, domain)
    first, again, other = (fingerprints(list(reader.batches(16, seed=s, epoch=e))) for s, e in ((1, 0), (1, 0), (1, 1)))
    assert first == again != other
    everything = sorted(map(str, fingerprints(list(reader.in_order(7)))))
    assert sorted(map(str, first)) == everything
    assert len(first) == reader.num_requests == 60
    assert reader.num_batches(16, seed=1, epoch=0) == len(list(reader.batches(16, seed=1, epoch=0)))


def test_a_resumed_run_sees_the_rest_and_ranks_share_each_batch(root: Path, domain: Domain) -> None:
    reader = publish_window(root, domain)
    whole = list(reader.batches(16, seed=3, epoch=2))
    rest = list(reader.batches(16, seed=3, epoch=2, first=2))
    assert fingerprints(rest) == fingerprints(whole[2:])
    ranks = [list(reader.batches(16, seed=3, epoch=2, rank=r, world=2)) for r in range(2)]
    for batch, zero, one in zip(whole, *ranks, strict=True):
        assert sorted(map(str, fingerprints([zero, one]))) == sorted(map(str, fingerprints([batch])))


def test_the_mask_is_drawn_per_request_and_repeats(root: Path, domain: Domain) -> None:
    """Defect of the reference code: one mask for the whole batch, from a global generator."""
    import dataclasses

    publish_window(root, domain)
    masked = WindowReader(root, ["w"], dataclasses.replace(domain, time_mask_ms=20), 8)
    np.random.seed(0)  # a global generator must play no part
    first = next(b.requests.sequences.length_R for b in masked.batches(64, seed=1, epoch=0))
    np.random.seed(1)
    again = next(b.requests.sequences.length_R for b in masked.batches(64, seed=1, epoch=0))
    plain = next(
        b.requests.sequences.length_R for b in WindowReader(root, ["w"], domain, 8).batches(64, seed=1, epoch=0)
    )
    assert first.tolist() == again.tolist()
    assert (first <= plain).all()
    assert len(set(first.tolist())) > 2
    in_order = np.concatenate([b.requests.sequences.length_R for b in masked.in_order(64)])
    assert in_order.sum() == plain.sum()  # evaluation masks nothing


def test_every_rank_takes_as_many_steps_and_none_is_empty(root: Path, domain: Domain) -> None:
    reader = publish_window(root, domain)  # 60 requests
    for world, size in ((2, 59), (3, 29), (4, 7)):
        ranks = [list(reader.batches(size, seed=0, epoch=0, rank=r, world=world)) for r in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        assert all(len(batch) for batches in ranks for batch in batches)
        assert sum(len(batch) for batches in ranks for batch in batches) == 60
    with pytest.raises(PublishError, match="too few for 61 workers"):
        next(reader.batches(8, seed=0, epoch=0, world=61))


def test_negatives_are_thinned_at_the_rate_and_positives_stay(root: Path, domain: Domain) -> None:
    publish_window(root, domain, num_requests=600)
    full = WindowReader(root, ["w"], domain, 8)
    thin = WindowReader(root, ["w"], domain, 8, negative_rate=0.3)

    def counts(reader: WindowReader, epoch: int) -> tuple[int, int, list[int]]:
        labels = [b.label_NH.any(axis=1) for b in reader.batches(64, seed=0, epoch=epoch)]
        flat = np.concatenate(labels)
        hashes = [int(h) for b in reader.batches(64, seed=0, epoch=epoch) for h in b.requests.candidate_hash_N]
        return int(flat.sum()), int((~flat).sum()), hashes

    positives, negatives, _ = counts(full, 0)
    kept_positives, kept, hashes = counts(thin, 0)
    assert kept_positives == positives
    assert abs(kept / negatives - 0.3) < 0.08
    assert counts(thin, 0)[2] == hashes != counts(thin, 1)[2], "the draw repeats, and is another one each epoch"
    assert sum(len(b.label_NH) for b in thin.in_order(64)) == positives + negatives, "evaluation thins nothing"
    with pytest.raises(ValueError, match="negative_rate"):
        WindowReader(root, ["w"], domain, 8, negative_rate=0.0)


def test_a_window_too_short_for_the_model_is_refused(root: Path, domain: Domain) -> None:
    publish_window(root, domain)
    with pytest.raises(PublishError, match="keeps 8 actions"):
        WindowReader(root, ["w"], domain, 9)


def test_make_event_is_what_the_log_expects() -> None:
    assert set(make_event(1).__slots__) <= {f.name for f in EVENT_SCHEMA}


def test_an_open_window_is_refused(domain: Domain) -> None:
    window = Window(T0, T0 + DAY)
    check_closed(window, domain, now_ms=T0 + 2 * DAY)
    with pytest.raises(PublishError, match="closes at 2026-01-03"):
        check_closed(window, domain, now_ms=T0 + 2 * DAY - 1)


def test_an_action_that_names_no_request_counts_for_the_latest_list_that_showed_the_item(domain: Domain) -> None:
    lists = [("r1", T0), ("r2", T0 + 10), ("next", T0 + 1000)]
    requests = request_table(
        [{"request_id": r, "user_id": "u", "timestamp_ms": t, "item_ids": ["a", "b"]} for r, t in lists]
    )
    acted = [("a", T0 + 5), ("b", T0 + 500), ("a", T0 + 2000), ("a", T0 + 3 * DAY)]
    events = event_table(
        [
            {"event_id": f"{n}", "user_id": "u", "item_id": item, "action": "save", "timestamp_ms": at}
            for n, (item, at) in enumerate(acted)
        ]
    )
    _, cut = build_bucket(bucket_of_events(events), requests, Window(T0, T0 + 100), domain)
    found = dict(zip(cut["request_id"].to_pylist(), cut["labels"].to_pylist(), strict=True))
    assert found == {"r1": [1, 0, 0, 0], "r2": [0, 0, 1, 0]}  # the later saves are the next list's, or too late


def test_the_summary_tells_days_without_events(capsys: pytest.CaptureFixture[str]) -> None:
    events = LogCounts(read=3, accepted=3, days=Counter({"2026-01-01": 2, "2026-01-04": 1}))
    print_summary(Summary(events=events))
    assert "2026-01-01 to 2026-01-04, 2 days, 2 days between without any" in capsys.readouterr().out
