"""What replicas serve of the statistics: the same on all, and the same as counted from the log, whatever happens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import bucket_of
from rayapp.pipeline import statistics as counting
from rayapp.pipeline import statistics_parity as comparing
from rayapp.pipeline.export import export_all
from rayapp.root.erasure import erase_user
from rayapp.root.facts import make_root
from rayapp.serving.closed_steps import GRACE_MS
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.statistics.known import load_newest
from rayapp.statistics.logged import pack, unpack
from rayapp.store import Store
from rayapp.store.opening import open_store
from tests.conftest import T0, make_event

STEP_MS = 600_000
START = T0 // STEP_MS * STEP_MS
USERS, ITEMS = [f"u{n}" for n in range(4)], [f"i{n}" for n in range(3)]
HASHES = np.array([hash64(item) for item in ITEMS], np.uint64)


pytestmark = pytest.mark.usefixtures("without_ray")


class Feed:
    """A root under a clock of its own."""

    def __init__(self, root: Path, store: Store, domain: Domain) -> None:
        self.root, self.store, self.domain, self.now_ms, self.count = root, store, domain, START, 0
        for n, item in enumerate(ITEMS):
            genres = [["drama"], ["drama", "war"], []][n]
            store.put_item({"item_id": item, "created_at_ms": START - DAY_MS, "title": item, "genres": genres})
        export_all(root, store, START)
        counting.count_statistics(root, domain)

    def replica(self) -> FreshStatistics:
        return FreshStatistics(self.root, self.domain, self.store, lambda: self.now_ms * 1_000_000)

    def show(self, user: str, *items: str) -> None:
        self.count += 1
        row = {"request_id": f"r{self.count}", "user_id": user, "timestamp_ms": self.now_ms, "item_ids": list(items)}
        self.store.log_requests([row])

    def act(self, user: str, item: str, action: str = "save", late_ms: int = 0) -> None:
        self.count += 1
        event = make_event(self.count, user=user, item=item, action=action, at=self.now_ms - late_ms)
        self.store.append([event])

    def end_step(self) -> None:
        self.now_ms = (self.now_ms // STEP_MS + 1) * STEP_MS + GRACE_MS

    def export(self) -> None:
        export_all(self.root, self.store, self.now_ms)

    def counted(self, at_ms: int, user: str) -> tuple[np.ndarray, np.ndarray]:
        """What the log says, once all of it is exported."""
        self.export()
        counting.count_statistics(self.root, self.domain)
        statistics, step = load_newest(self.root, self.domain), np.array([at_ms // STEP_MS])
        user_1 = np.array([hash64(user)], np.uint64)
        return statistics.users(user_1, step)[0], statistics.items(HASHES, np.repeat(step, len(HASHES)))


@pytest.fixture
def feed(root: Path, store: Store, domain: Domain) -> Feed:
    return Feed(root, store, domain)


def positives(replica: FreshStatistics) -> list[int]:
    """Positive actions on each item, of all time."""
    found = replica.read("nobody", HASHES)
    num_half_lives = 4
    return np.rint(np.expm1(found.item_CK[:, -1] * 5)).astype(int).tolist() if num_half_lives else []


def test_what_happened_in_a_step_is_served_once_it_is_over(feed: Feed) -> None:
    replica = feed.replica()
    feed.show("u1", "i0", "i1")
    feed.act("u1", "i0")
    replica.refresh()
    assert positives(replica) == [0, 0, 0]
    feed.end_step()
    assert positives(replica) == [0, 0, 0], "nobody has looked yet"
    replica.refresh()
    assert positives(replica) == [1, 0, 0]
    assert replica.read("u1", HASHES).at_ms == feed.now_ms // STEP_MS * STEP_MS
    assert replica.read("u1", HASHES).user_K.any()


def test_it_is_what_the_log_says(feed: Feed) -> None:
    replica = feed.replica()
    for user in USERS:
        feed.show(user, *ITEMS)
        feed.act(user, "i1", "hide")
    feed.end_step()
    feed.act("u0", "i2")
    replica.refresh()
    served = replica.read("u0", HASHES)
    user_K, item_CK = feed.counted(served.at_ms or 0, "u0")
    assert served.user_K == pytest.approx(user_K, abs=1e-6)
    assert served.item_CK == pytest.approx(item_CK, abs=1e-6)
    assert served.item_CK[1].min() < 0, "everybody hid it"


def test_one_user_makes_nothing_popular(feed: Feed) -> None:
    replica = feed.replica()
    for _ in range(50):
        feed.act("u1", "i0")
    feed.end_step()
    replica.refresh()
    assert positives(replica) == [1, 0, 0]


def test_replicas_agree_although_they_read_at_other_times(feed: Feed) -> None:
    early, late = feed.replica(), feed.replica()
    feed.act("u1", "i0")
    feed.end_step()
    early.refresh()
    feed.act(
        "u2", "i0", late_ms=2 * GRACE_MS
    )  # received in the step that is over, stored after the first has closed it
    late.refresh()
    assert positives(early) == positives(late) == [1, 0, 0]
    feed.end_step()
    late.refresh()
    early.refresh()
    assert positives(early) == positives(late) == [2, 0, 0]


def test_rows_that_an_export_took_away_are_read_from_the_logs(feed: Feed) -> None:
    replica = feed.replica()
    feed.show("u1", "i0")
    feed.act("u1", "i0")
    feed.export()
    feed.act("u2", "i1")
    feed.end_step()
    replica.refresh()
    assert positives(replica) == [1, 1, 0]


def test_a_new_count_of_the_log_changes_nothing(feed: Feed) -> None:
    replica = feed.replica()
    feed.show("u1", "i0", "i2")
    feed.act("u1", "i0")
    feed.end_step()
    replica.refresh()
    before = replica.read("u1", HASHES)
    feed.export()
    counting.count_statistics(feed.root, feed.domain)
    replica.refresh()
    after = replica.read("u1", HASHES)
    assert after.at_ms == before.at_ms
    assert after.item_CK == pytest.approx(before.item_CK, abs=1e-6)
    feed.act("u2", "i0")
    feed.end_step()
    replica.refresh()
    assert positives(replica) == [2, 0, 0]


def test_a_root_that_was_never_counted_counts_what_comes(root: Path, store: Store, domain: Domain) -> None:
    now_ms = START
    replica = FreshStatistics(root, domain, store, lambda: now_ms * 1_000_000)
    assert replica.read("u1", HASHES).fresh
    store.append([make_event(1, item="i0", action="save", at=START)])
    now_ms = START + STEP_MS + GRACE_MS
    replica.refresh()
    assert positives(replica) == [1, 0, 0]


def test_an_item_put_a_second_ago_reads_as_its_categories_do(feed: Feed) -> None:
    for user in USERS:
        feed.show(user, "i1", "i2")
        feed.act(user, "i1")
    feed.end_step()
    feed.store.put_item({"item_id": "new", "created_at_ms": feed.now_ms, "title": "new", "genres": ["war"]})
    replica = feed.replica()
    new_K, absent_K = replica.read("u1", np.array([hash64("new"), hash64("no such item")], np.uint64)).item_CK
    assert new_K.max() > 0.1
    assert not absent_K.any()


def test_an_item_that_is_put_within_a_step_is_served_as_later_readers_find_it(feed: Feed) -> None:
    for user in USERS:
        feed.show(user, "i1", "i2")
        feed.act(user, "i1")
    feed.end_step()
    replica = feed.replica()
    served, at_ms = replica.read("u1", HASHES).item_CK, feed.now_ms // STEP_MS * STEP_MS
    feed.store.put_item({"item_id": "new", "created_at_ms": feed.now_ms, "title": "new", "genres": ["war"]})
    replica.refresh()
    hashes = np.append(HASHES, np.uint64(hash64("new")))
    found = replica.read("u1", hashes)
    assert found.at_ms == at_ms
    feed.counted(at_ms, "u1")
    counted = load_newest(feed.root, feed.domain).items(hashes, np.full(len(hashes), at_ms // STEP_MS))
    assert found.item_CK == pytest.approx(counted, abs=1e-6)
    assert found.item_CK[3].any()
    feed.store.put_item({"item_id": "i2", "created_at_ms": feed.now_ms, "title": "i2", "genres": ["war"]})
    replica.refresh()
    assert (replica.read("u1", HASHES).item_CK[2] != served[2]).any(), "its category is another"


def test_of_an_erased_user_nothing_is_served(feed: Feed) -> None:
    feed.show("u1", "i0")
    feed.end_step()
    assert feed.replica().read("u1", HASHES).user_K.any()
    erase_user(feed.root, "u1", feed.now_ms)
    assert not feed.replica().read("u1", HASHES).user_K.any()


def test_statistics_that_were_not_renewed_say_so(feed: Feed) -> None:
    replica = feed.replica()
    assert replica.read("u1", HASHES).fresh
    for _ in range(3):
        feed.end_step()
    assert not replica.read("u1", HASHES).fresh
    replica.refresh()
    assert replica.read("u1", HASHES).fresh


def test_numbers_are_logged_in_a_few_bytes(feed: Feed) -> None:
    feed.act("u1", "i0")
    feed.end_step()
    found, columns = feed.replica().read("u1", HASHES), load_newest(feed.root, feed.domain).columns
    text = pack(found.item_CK, found.user_K)
    item_CK, user_K = unpack(text, len(ITEMS), columns)
    assert item_CK == pytest.approx(found.item_CK, abs=2e-3)
    assert user_K == pytest.approx(found.user_K, abs=2e-3)
    with pytest.raises(ValueError, match="not those of 2 items"):
        unpack(text, 2, columns)


Step = Callable[[Feed, list[FreshStatistics]], object]
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(
        lambda user, item, action, late: lambda feed, _: feed.act(user, item, action, late),
        st.sampled_from(USERS),
        st.sampled_from(ITEMS),
        st.sampled_from(["save", "hide", "click"]),
        st.sampled_from([0, 0, 3 * GRACE_MS]),
    ),
    st.builds(lambda user, item: lambda feed, _: feed.show(user, item), st.sampled_from(USERS), st.sampled_from(ITEMS)),
    st.just(lambda feed, _: feed.end_step()),
    st.just(lambda feed, _: feed.export()),
    st.builds(lambda n: lambda _, replicas: replicas[n].refresh(), st.integers(0, 1)),
    st.builds(lambda n: lambda feed, replicas: replicas.__setitem__(n, feed.replica()), st.integers(0, 1)),
)


@pytest.mark.slow
@given(st.lists(steps, max_size=25))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_all_serve_what_the_log_says(
    tmp_path_factory: pytest.TempPathFactory, domain: Domain, script: list[Step]
) -> None:
    root = tmp_path_factory.mktemp("script") / "root"
    make_root(root, domain, num_buckets=2)
    store = open_store(root)
    try:
        feed = Feed(root, store, domain)
        replicas = [feed.replica(), feed.replica()]
        for step in script:
            step(feed, replicas)
        feed.end_step()
        for replica in replicas:
            replica.refresh()
        served = [replica.read("u1", HASHES) for replica in replicas]
        user_K, item_CK = feed.counted(served[0].at_ms or 0, "u1")
        for one in served:
            assert one.item_CK == pytest.approx(item_CK, abs=1e-4)
            assert one.user_K == pytest.approx(user_K, abs=1e-4)
    finally:
        store.close()


def test_parity_counts_anew_and_finds_a_number_that_is_wrong(feed: Feed) -> None:
    replica = feed.replica()
    for n in range(3):
        feed.act(f"u{n}", "i0")
        feed.end_step()
        replica.refresh()
        found = replica.read("u1", HASHES)
        wrong = found.item_CK + (0.1 if n == 2 else 0)
        row = {"request_id": f"asked{n}", "user_id": "u1", "timestamp_ms": feed.now_ms, "item_ids": ITEMS}
        logged = {"statistics_at_ms": found.at_ms, "statistics": pack(wrong, found.user_K)}
        feed.store.log_requests([row | logged])
    feed.export()
    result = comparing.statistics_parity(feed.root)
    assert (result.compared, result.equal, result.different) == (3, 2, ("asked2",))
    assert bucket_of("u1", 4) >= 0
