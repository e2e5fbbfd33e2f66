"""MovieLens-100K (GroupLens): 100,000 real ratings by 943 people of 1,682 films, 1997-98.

Read out of the `recbole` wheel on PyPI, which carries a copy; the wheel is fetched, checked and never installed.
GroupLens' terms: research use, cite the data set (Harper and Konstan, 2015), no redistribution, no endorsement
implied. https://grouplens.org/datasets/movielens/100k/

Ratings hold no impressions, so lists are made up: every rating becomes one item of a shown list of five, the other
four drawn from the films this person never rated, in proportion to how often a film was rated. That is an
approximation: nobody saw those lists, and a film "not rated" may well have been watched.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.config import DAY_MS, Domain, Head
from rayapp.schema import (
    EVENT_SCHEMA,
    REQUEST_SCHEMA,
    Action,
    ActionKind,
    Attribute,
    AttributeKind,
    Vocabulary,
    hash64_column,
    item_schema,
)
from rayapp.sources import Source, SourceError

WHEEL: Final = "recbole==1.2.1"
WHEEL_NAME: Final = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER: Final = "recbole/dataset_example/ml-100k/ml-100k."
LIST_SIZE: Final = 5
TEST_SHARE: Final = 0.2
"""The last 20 % of the time span is the test set."""
ACTION_OF_RATING: Final = {1: "dislike", 2: "dislike", 3: "view", 4: "like", 5: "save"}

DOMAIN: Final = Domain(
    name="movielens",
    vocabulary=Vocabulary(
        (
            Action(name="dislike", kind=ActionKind.NEGATIVE, priority=3),
            Action(name="view", kind=ActionKind.NEUTRAL, priority=0),
            Action(name="like", kind=ActionKind.POSITIVE, priority=1),
            Action(name="save", kind=ActionKind.POSITIVE, priority=2),
            Action(name="impression", kind=ActionKind.NEUTRAL, in_sequence=False),
        )
    ),
    heads=(
        Head(name="positive", actions=("like", "save"), utility=1.0),
        Head(name="save", actions=("save",), utility=0.5),
        Head(name="dislike", actions=("dislike",), utility=-1.5),
    ),
    positive_head="positive",
    attributes=(
        Attribute("title", AttributeKind.TEXT),
        Attribute("genres", AttributeKind.CATEGORIES),
        Attribute("year", AttributeKind.NUMBER),
    ),
    title="title",
    # Ratings come in bursts of minutes; hiding the last hours would hide everything.
    time_mask_ms=0,
    # A dislike weighs twenty times in the positive heads (TransAct, appendix A, raises those weights by a hide in the
    # same way). Without it the made-up lists teach that a disliked film was at least watched, and a dislike of a
    # genre would raise it.
    label_weights=((1, 0, 20, 1), (1, 0, 20, 1), (1, 0, 1, 1)),
)


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


def load(cache: Path, seed: int = 0) -> Source:
    """The whole data set. `seed` draws the four other items of each list."""
    with zipfile.ZipFile(fetch(cache)) as wheel:
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
    timestamp_ms = ratings["timestamp"].to_numpy() * 1000
    first, last = int(timestamp_ms.min()), int(timestamp_ms.max())
    split_ms = int(first + (1 - TEST_SHARE) * (last - first)) // DAY_MS * DAY_MS
    request_id = ("ml-" + ratings["user_id"] + "-" + ratings["item_id"]).to_numpy()
    return Source(
        domain=DOMAIN,
        events=_events(ratings, timestamp_ms, request_id),
        requests=_requests(ratings, timestamp_ms, request_id, films["item_id"].to_numpy(), seed),
        items=_items(films),
        split_ms=split_ms,
    )


def _events(ratings: pd.DataFrame, timestamp_ms: NDArray[np.int64], request_id: NDArray[np.object_]) -> pa.Table:
    n = len(ratings)
    event_id = pa.array([f"{r}-rating" for r in request_id])
    return pa.table(
        {
            "event_id": event_id,
            "event_hash": hash64_column(event_id),
            "user_id": pa.array(ratings["user_id"].tolist()),
            "item_id": pa.array(ratings["item_id"].tolist()),
            "action": pa.array([ACTION_OF_RATING[r] for r in ratings["rating"]]),
            "timestamp_ms": timestamp_ms,
            "received_at_ms": timestamp_ms,
            "commit_seq": np.zeros(n, np.int64),
            "request_id": pa.array(request_id.tolist()),
            "position": pa.nulls(n, pa.int32()),
            "value": ratings["rating"].to_numpy(np.float64),
            "surface": pa.nulls(n, pa.string()),
        },
        schema=EVENT_SCHEMA,
    )


def _requests(
    ratings: pd.DataFrame,
    timestamp_ms: NDArray[np.int64],
    request_id: NDArray[np.object_],
    catalogue: NDArray[np.object_],
    seed: int,
) -> pa.Table:
    """A shown list of five for each rating, in random order, labels left to the join with the events."""
    rng = np.random.default_rng(seed)
    code = pd.Series(np.arange(len(catalogue)), index=catalogue)
    rated_R = code[ratings["item_id"]].to_numpy()
    popularity = np.bincount(rated_R, minlength=len(catalogue)).astype(float)
    lists_RC = np.empty((len(ratings), LIST_SIZE), np.int64)
    for rows in ratings.groupby("user_id", sort=True).indices.values():
        weight = popularity.copy()
        weight[rated_R[rows]] = 0.0
        # Gumbel keys: the four largest of log(weight) + noise are a weighted sample without replacement.
        with np.errstate(divide="ignore"):
            keys = np.log(weight) + rng.gumbel(size=(len(rows), len(catalogue)))
        others = np.argpartition(-keys, LIST_SIZE - 1, axis=1)[:, : LIST_SIZE - 1]
        shown = np.concatenate([rated_R[rows][:, None], others], axis=1)
        lists_RC[rows] = rng.permuted(shown, axis=1)
    n = len(ratings)
    columns = {
        "request_id": pa.array(request_id.tolist()),
        "user_id": pa.array(ratings["user_id"].tolist()),
        "timestamp_ms": pa.array(timestamp_ms),
        "item_ids": pa.array(catalogue[lists_RC].tolist(), pa.large_list(pa.string())),
    }
    return pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in REQUEST_SCHEMA], schema=REQUEST_SCHEMA)


def _items(films: pd.DataFrame) -> pa.Table:
    year = pd.to_numeric(films["year"], errors="coerce")
    since_1970 = (year.fillna(1900) - 1970).to_numpy().astype("datetime64[Y]")
    created_at_ms = since_1970.astype("datetime64[ms]").astype(np.int64)
    return pa.table(
        {
            "item_id": pa.array(films["item_id"].tolist()),
            "created_at_ms": created_at_ms,
            "title": pa.array([t if isinstance(t, str) else None for t in films["title"]]),
            "genres": pa.array(
                [g.split() if isinstance(g, str) else [] for g in films["genres"]], pa.large_list(pa.string())
            ),
            "year": pa.array(year.to_numpy(), from_pandas=True),
        },
        schema=item_schema(DOMAIN.attributes),
    )
