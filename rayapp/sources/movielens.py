"""MovieLens-100K (GroupLens): 100,000 real ratings by 943 people of 1,682 films, 1997-98.

Read out of the `recbole` wheel on PyPI, which carries a copy; the wheel is fetched, checked and never installed.
GroupLens' terms: research use, cite the data set (Harper and Konstan, 2015), no redistribution, no endorsement
implied. https://grouplens.org/datasets/movielens/100k/

Ratings hold no impressions, so lists are made up. A list holds at most five films that a person rated one after another
in one sitting, and five that they never rated, drawn in proportion to how often a film was rated: a disliked film is a
negative one among watched ones, and what nobody watches is one, too. Nobody saw those lists, and a film "not rated" may
well have been watched.

Times are moved by whole weeks, so that the last rating is of yesterday or of the six days before, and hours and
weekdays stay what they were: what looks at the last days, such as fresh statistics, `rayapp watch` and `rayapp
retrain`, then finds some.
"""

import hashlib
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rayapp.sources import Files, RunParts, Size, SourceError

WHEEL: Final = "recbole==1.2.1"
WHEEL_NAME: Final = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER: Final = "recbole/dataset_example/ml-100k/ml-100k."
RATED, NOT_RATED = 5, 5
"""Films of a list, at most."""
SITTING_GAP_S: Final = 1_800
"""A sitting ends where nothing is rated for so long: 98 of 100 gaps are shorter, and the others mostly days."""
WEEK_S: Final = 7 * 86_400
MOVED_FILE: Final = "moved.json"
"""How many weeks the files beside it are moved by: fetched again into one directory, they stay the same."""


def fetch(cache: Path) -> Path:
    """The wheel, downloaded with pip into `cache` unless it is there already.

    Raises:
        SourceError: pip could not fetch it, or the file is not the one expected.
    """
    wheel = cache / WHEEL_NAME
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--dest",
            str(cache),
            WHEEL,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.exists():
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise SourceError(
                f"MovieLens-100K could not be fetched: `pip download {WHEEL}` failed ({reason}). "
                "Check the network or the package index, or run with `--source synthetic`, which needs neither."
            )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        wheel.unlink()
        raise SourceError(
            f"{wheel} had sha256 {digest}, not {WHEEL_SHA256}; it was deleted. Run again to fetch it anew, "
            "or use `--source synthetic`."
        )
    return wheel


def write_files(directory: Path, size: Size, _run_parts: RunParts) -> Files:
    """The data set as files that `domains/movielens.toml` reads, beside the wheel that they come from. The seed draws
    the films of each list that were not rated, and its order. How far times are
    moved is recorded beside them, once for a directory.

    Raises:
        SourceError: as for `fetch`.
    """
    with zipfile.ZipFile(fetch(directory)) as wheel:
        with wheel.open(MEMBER + "inter") as file:
            ratings = pd.read_csv(
                file,
                sep="\t",
                names=["user_id", "item_id", "rating", "timestamp"],
                header=0,
                dtype={"user_id": str, "item_id": str, "rating": int, "timestamp": np.int64},
            )
        with wheel.open(MEMBER + "item") as file:
            films = pd.read_csv(file, sep="\t", names=["item_id", "title", "year", "genres"], header=0, dtype=str)
    ratings = ratings.sort_values(["timestamp", "user_id", "item_id"], kind="stable", ignore_index=True)
    ratings["request_id"] = request_ids(ratings)
    ratings["event_id"] = "ml-" + ratings["user_id"] + "-" + ratings["item_id"] + "-rating"
    lists = shown_lists(ratings, films["item_id"].to_numpy(), size.seed)
    films["year"] = pd.to_numeric(films["year"], errors="coerce")
    weeks = _recorded_weeks(directory, int(ratings["timestamp"].max()), original=size.original_times)
    for frame in (ratings, lists):
        frame["timestamp"] += weeks * WEEK_S
    films["released"] = released(films["year"], weeks)
    films["genres"] = [g.split() if isinstance(g, str) else [] for g in films["genres"]]
    files = Files(directory / "ratings.parquet", directory / "lists.parquet", directory / "films.parquet")
    for path, frame in ((files.events, ratings), (files.requests, lists), (files.items, films)):
        frame.to_parquet(path, index=False)
    return files


def request_ids(ratings: pd.DataFrame) -> pd.Series:
    """The list of each rating: a sitting is cut into the fewest lists of at most five, as equal as can be."""
    ordered = ratings.sort_values(["user_id", "timestamp"], kind="stable")
    begins = ordered["timestamp"].groupby(ordered["user_id"]).diff().fillna(np.inf) > SITTING_GAP_S
    sitting = begins.cumsum()
    place = ordered.groupby(sitting).cumcount()
    size = place.groupby(sitting).transform("size")
    num_lists = -(-size // RATED)
    which = place * num_lists // size
    number = (which.diff().fillna(1).ne(0) | begins).groupby(ordered["user_id"]).cumsum()
    return ("ml-" + ordered["user_id"] + "-" + number.astype(str)).reindex(ratings.index)


def shown_lists(ratings: pd.DataFrame, catalogue: NDArray[np.object_], seed: int) -> pd.DataFrame:
    """One row a list, shown when the first of its films was rated; the films in random order."""
    rng = np.random.default_rng(seed)
    place = pd.Series(np.arange(len(catalogue)), index=catalogue)
    rated_R = place[ratings["item_id"]].to_numpy()
    popularity = np.bincount(rated_R, minlength=len(catalogue)).astype(float)
    shown: dict[str, list[str]] = {}
    for rows in ratings.groupby("user_id", sort=True).indices.values():
        weight = popularity.copy()
        weight[rated_R[rows]] = 0.0
        rated = ratings.iloc[rows].groupby("request_id", sort=True)["item_id"].agg(list)
        # Gumbel keys: the largest of log(weight) + noise are a weighted sample without replacement.
        with np.errstate(divide="ignore"):
            keys = np.log(weight) + rng.gumbel(size=(len(rated), len(catalogue)))
        others = catalogue[np.argpartition(-keys, NOT_RATED - 1, axis=1)[:, :NOT_RATED]]
        for name, own, drawn in zip(rated.index, rated, others, strict=True):
            shown[name] = rng.permutation([*own, *drawn]).tolist()
    lists = ratings.groupby("request_id", as_index=False).agg(
        user_id=("user_id", "first"), timestamp=("timestamp", "min")
    )
    lists["item_ids"] = lists["request_id"].map(shown)
    return lists.sort_values(["timestamp", "request_id"], ignore_index=True)


def weeks_to_yesterday(last_s: int, now_s: float) -> int:
    """The most whole weeks by which a moment can be moved and still lie before today (UTC)."""
    today_s = int(now_s) // 86_400 * 86_400
    return max((today_s - 1 - last_s) // WEEK_S, 0)


def released(years: "pd.Series[float]", weeks: int) -> list[str | None]:
    """The first of January of each year, so many weeks later; None where there is no year."""
    days = np.timedelta64(7 * weeks, "D")
    return [None if np.isnan(y) else str(np.datetime64(f"{int(y)}-01-01", "D") + days) for y in years]


def _recorded_weeks(directory: Path, last_s: int, *, original: bool) -> int:
    record = directory / MOVED_FILE
    if original or not record.exists():
        weeks = 0 if original else weeks_to_yesterday(last_s, time.time())
        record.write_text(json.dumps({"weeks": weeks, "why": "times of MovieLens-100K, moved to end yesterday"}) + "\n")
    found: int = json.loads(record.read_text())["weeks"]
    return found
