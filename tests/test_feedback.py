"""The feedback loop: who is on which feed, and that only the feed differs."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from benchmarks.feedback import describe, mixed_world, on_responsive
from rayapp.importing.domains import load_domain
from rayapp.loop.first_import import import_once
from rayapp.sources.synthetic import World

WORLD = World(num_users=300, num_items=150, num_days=6)
USERS = pa.chunked_array([[f"u{n}" for n in range(20_000)]])


def test_shares_are_nested_and_of_their_size() -> None:
    few, half, everyone = (on_responsive(USERS, share) for share in (0.015, 0.5, 1.0))
    assert few.mean() == pytest.approx(0.015, abs=0.003)
    assert half.mean() == pytest.approx(0.5, abs=0.02)
    assert not (few & ~half).any()
    assert everyone.all()
    assert not on_responsive(USERS, 0.0).any()


def test_the_same_people_come_at_the_same_time_whatever_they_are_shown(tmp_path: Path) -> None:
    tables = {}
    for share in (0.0, 0.5, 1.0):
        files = mixed_world(WORLD, share, tmp_path / f"{share}")
        tables[share] = ds.dataset(files.requests).to_table().sort_by("request_id")
        assert pq.read_table(files.items).equals(pq.read_table(tmp_path / "0.0" / "items.parquet"))
    none, half, everyone = (tables[share] for share in (0.0, 0.5, 1.0))
    # A visit whose every place stayed empty is no request; that is rare and the feed's doing.
    assert abs(none.num_rows - everyone.num_rows) < 0.01 * none.num_rows
    assert set(half["user_id"].to_pylist()) == set(none["user_id"].to_pylist())
    mine = pa.array(on_responsive(half["user_id"], 0.5))
    theirs = pa.array(on_responsive(everyone["user_id"], 0.5))
    assert half.filter(mine).equals(everyone.filter(theirs))
    assert half.filter(pc.invert(mine)).equals(none.filter(pa.array(~on_responsive(none["user_id"], 0.5))))


@pytest.mark.extended
@pytest.mark.cluster
def test_a_responsive_feed_makes_a_log_of_more_saves_and_fewer_topics(ray_session: None, tmp_path: Path) -> None:
    domain_file = load_domain("synthetic")
    logs = []
    for share in (0.0, 1.0):
        root = tmp_path / f"share-{share}"
        import_once(root, domain_file, lambda share=share, root=root: mixed_world(WORLD, share, root / "raw"))  # type: ignore[misc]
        logs.append(describe(root, domain_file.domain))
    old, new = logs
    assert new.saves_per_list.low > old.saves_per_list.high
    assert new.actions_per_list.value > old.actions_per_list.value
    assert new.topics_bits.high < old.topics_bits.low
    assert old.topics_bits.low < old.topics_bits.value < old.topics_bits.high
