"""Lists made of ratings: what a person rated in one sitting, and films that they never rated."""

import numpy as np
import pandas as pd

from rayapp.sources.movielens import NOT_RATED, RATED, SITTING_GAP_S, request_ids, shown_lists

CATALOGUE = np.array([f"f{n}" for n in range(40)], object)


def rated(user_id: str, items: list[str], start_s: int) -> list[dict[str, object]]:
    return [{"user_id": user_id, "item_id": item, "timestamp": start_s + 10 * n} for n, item in enumerate(items)]


def ratings() -> pd.DataFrame:
    """Ann rates seven films in one sitting and one a day later, bob two at the same time as ann; every film but those
    of the last rows was rated by somebody."""
    rows = rated("ann", [f"f{n}" for n in range(7)], 1_000) + rated("ann", ["f7"], 1_000 + 86_400)
    rows += rated("bob", ["f20", "f21"], 1_005) + rated("cat", [f"f{n}" for n in range(8, 30)], 5_000)
    frame = pd.DataFrame(rows).sort_values(["timestamp", "user_id"], ignore_index=True)
    frame["request_id"] = request_ids(frame)
    return frame


def test_a_sitting_is_cut_into_lists_as_equal_as_can_be() -> None:
    sizes = ratings().groupby("request_id").size()
    assert sizes[["ml-ann-1", "ml-ann-2", "ml-ann-3", "ml-bob-1"]].tolist() == [4, 3, 1, 2]
    assert sizes.max() <= RATED


def test_a_list_lies_within_one_sitting_of_one_person_and_begins_with_its_first_rating() -> None:
    frame = ratings()
    lists = shown_lists(frame, CATALOGUE, seed=0).set_index("request_id")
    for request_id, rows in frame.groupby("request_id"):
        assert rows["user_id"].unique().tolist() == [lists.at[request_id, "user_id"]]
        assert rows["timestamp"].diff().dropna().le(SITTING_GAP_S).all()
        assert rows["timestamp"].min() == lists.at[request_id, "timestamp"]
        assert set(rows["item_id"]) < set(lists["item_ids"].loc[request_id])


def test_the_other_films_are_ones_that_the_person_never_rated_and_somebody_did() -> None:
    frame = ratings()
    lists, everyones = shown_lists(frame, CATALOGUE, seed=0), set(frame["item_id"])
    own = frame.groupby("user_id")["item_id"].agg(set)
    size = frame.groupby("request_id").size()
    for row in lists.to_dict("records"):
        others = set(row["item_ids"]) - own[row["user_id"]]
        assert len(others) == NOT_RATED
        assert others <= everyones
        assert len(row["item_ids"]) == size[row["request_id"]] + NOT_RATED


def test_the_seed_alone_decides() -> None:
    frame = ratings()
    one, same, other = (shown_lists(frame, CATALOGUE, seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same)
    assert not one["item_ids"].equals(other["item_ids"])
