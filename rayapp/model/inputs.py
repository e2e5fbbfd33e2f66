"""From hashes to tensors: the item table, the users' attributes and the encoders, as one model reads them.

Shapes: B requests, C candidates, L history rows (newest first), N item table rows, U versions of users, E vector
width, W category places, M numeric attributes, K other numbers (statistics, and what is known without counting), R
changed rows, X columns of one of these.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayapp.contracts.config import Domain, ModelConfig
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import PAD, ActionKind, Attribute, attribute_fields
from rayapp.features.attributes import ABSENT, AttributeEncoder, Encoders
from rayapp.features.content import Item
from rayapp.features.known_numbers import Acts, ItemFacts
from rayapp.features.requests import Requests
from rayapp.features.sequence import Ints, known_to
from rayapp.features.statistic_columns import Columns
from rayapp.model.item_table import ItemTable
from rayapp.model.matching import age_buckets
from rayapp.model.ranker import Batch

READS_ALL: Final = ModelConfig()
"""But for the day of the week."""


@dataclass(frozen=True, slots=True)
class UserTable:
    """Attributes of users by the time from which they hold; row 0 is a user without any."""

    hash_U: NDArray[np.uint64]
    effective_at_ms_U: NDArray[np.int64]
    category_UW: NDArray[np.int32]
    number_UM: NDArray[np.float32]

    @staticmethod
    def of(users: pa.Table, encoder: AttributeEncoder) -> "UserTable":
        hash_U, effective_U = hash64_column(users["user_id"]), users["effective_at_ms"].to_numpy()
        order = np.lexsort((effective_U, hash_U))
        category_UW, number_UM = encoder.encode(users.take(pa.array(order)))
        return UserTable(
            hash_U[order],
            effective_U[order],
            np.pad(category_UW, [(1, 0), (0, 0)]),
            np.pad(number_UM, [(1, 0), (0, 0)]),
        )

    def rows_of(self, hash_B: NDArray[np.uint64], timestamp_ms_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each user's newest version at that time, in `category_UW` and `number_UM`; 0 where there is none."""
        first_B = np.searchsorted(self.hash_U, hash_B, side="left")
        row_B = np.searchsorted(self.hash_U, hash_B, side="right") - 1
        while True:  # as many rounds as a user has versions later than the request
            later_B = row_B >= first_B
            later_B[later_B] = self.effective_at_ms_U[row_B[later_B]] > timestamp_ms_B[later_B]
            if not later_B.any():
                return np.where(row_B >= first_B, row_B + 1, 0)
            row_B = row_B - later_B


@dataclass(frozen=True, slots=True)
class FeatureTables:
    """Everything a ranker looks up, on one device. Row 0 of an item or a user, "absent", is all zeros."""

    domain: Domain
    encoders: Encoders
    vocabulary_size: int
    """Of the model, which may know fewer actions than the domain has by now."""
    config: ModelConfig
    """Says which of the numbers the model reads."""
    table: ItemTable
    users: UserTable
    facts: ItemFacts
    """On the host, whatever the device."""
    vector_NE: Tensor
    category_NW: Tensor
    number_NM: Tensor

    @staticmethod
    def of(
        table: ItemTable,
        users: UserTable,
        encoders: Encoders,
        domain: Domain,
        vocabulary_size: int | None = None,
        *,
        config: ModelConfig = READS_ALL,
    ) -> "FeatureTables":
        category_NW, number_NM = encoders.item.encode(items_as_table(table))
        category_NW = np.pad(category_NW, [(1, 0), (0, 0)])
        return FeatureTables(
            domain,
            encoders,
            domain.vocabulary.size if vocabulary_size is None else vocabulary_size,
            config,
            table,
            users,
            ItemFacts(np.array([0, *map(_created_ms, table.items)], np.int64), category_NW),
            torch.from_numpy(table.vectors_NE),
            torch.from_numpy(category_NW),
            torch.from_numpy(np.pad(number_NM, [(1, 0), (0, 0)])),
        )

    def extended(self, table: ItemTable) -> "FeatureTables":
        """The same over `table`, which is this one's plus items put since; only those are encoded."""
        row_R = table.changed_since(self.table)
        category_RW, number_RM = self.encoders.item.encode(
            attributes_table([table.item(row) for row in row_R.tolist()], table.tower.attributes)
        )
        num_new = table.num_rows - self.table.num_rows
        category_NW, created_N = np.pad(self.facts.category_TW, [(0, num_new), (0, 0)]), self.facts.created_ms_T
        category_NW[row_R] = category_RW
        created_N = np.pad(created_N, (0, num_new))
        created_N[row_R] = [_created_ms(table.item(row)) for row in row_R.tolist()]
        return dataclasses.replace(
            self,
            table=table,
            facts=ItemFacts(created_N, category_NW),
            vector_NE=torch.from_numpy(table.vectors_NE).to(self.vector_NE.device),
            category_NW=torch.from_numpy(category_NW).to(self.category_NW.device),
            number_NM=_with_rows(self.number_NM, table.num_rows, row_R, number_RM),
        )

    def to(self, device: torch.device) -> "FeatureTables":
        tensors = {name: getattr(self, name).to(device) for name in ("vector_NE", "category_NW", "number_NM")}
        return dataclasses.replace(self, **tensors)

    def batch(self, requests: Requests) -> Batch:
        """Looks everything up."""
        return self.gather(self.look_up(requests))

    def look_up(self, requests: Requests, length: int | None = None, num_candidates: int | None = None) -> "Rows":
        """From hashes to rows, on the host, padded: histories to `length` places or cut to the newest so many,
        candidates to `num_candidates`; either to what the largest present needs unless it is given."""
        if length is None:
            length = max(int(requests.sequences.length_R.max(initial=1)), 1)
        sequences = requests.sequences.of_length(length)
        action_BL = known_to(self.vocabulary_size, sequences.action_RL)
        history_BL = np.where(action_BL == PAD, 0, self.table.rows_of(sequences.item_hash_RL))
        user_B = self.users.rows_of(requests.user_hash_R, requests.timestamp_ms_R)
        context_category_BW, context_number_BM = self.encoders.context.encode(requests.context)
        row_N, request_N = self.table.rows_of(requests.candidate_hash_N), requests.request_of_candidate()
        acts = Acts(action_BL, history_BL, sequences.timestamp_ms_RL, requests.timestamp_ms_R)
        item_statistic_NK, user_statistic_BK = self._statistics(requests)
        item_numbers = [item_statistic_NK, acts.item_numbers(self.facts, self.domain, request_N, row_N)]
        if self.config.reads_covisits:
            item_numbers.append(self._covisits(action_BL, history_BL, requests.sizes, row_N))
        item_number_NK = np.concatenate(item_numbers, axis=1)
        known_BK = acts.user_numbers(self.domain, reads_weekday=self.config.reads_weekday)
        user_numbers = [self.users.number_UM[user_B], user_statistic_BK, known_BK]
        return Rows(
            torch.from_numpy(action_BL.astype(np.int64)),
            torch.from_numpy(age_buckets(sequences.timestamp_ms_RL, requests.timestamp_ms_R, self.domain.time_mask_ms)),
            torch.from_numpy(history_BL),
            torch.from_numpy(requests.pad(row_N, num_candidates)),
            torch.from_numpy(requests.pad(item_number_NK, num_candidates)),
            torch.from_numpy(self.users.category_UW[user_B]),
            torch.from_numpy(np.concatenate(user_numbers, axis=1)),
            torch.from_numpy(context_category_BW),
            torch.from_numpy(context_number_BM),
        )

    def _statistics(self, requests: Requests) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        item_NK, user_BK = requests.item_statistic_NK, requests.user_statistic_RK
        if self.config.reads_rates:
            return item_NK, user_BK
        item_K, user_K = Columns.of(self.domain).without_lists()
        return item_NK * item_K, user_BK * user_K

    def _covisits(
        self, action_BL: NDArray[np.uint8], history_BL: NDArray[np.int64], size_B: Ints, row_N: Ints
    ) -> NDArray[np.float32]:
        if self.table.covisits is None:
            return np.zeros((len(row_N), 1), np.float32)
        rejected_BL = self.domain.vocabulary.flags(kind=ActionKind.NEGATIVE)[action_BL]
        return self.table.covisits.numbers(np.where(rejected_BL, ABSENT, history_BL), size_B, row_N)

    def gather(self, rows: "Rows") -> Batch:
        """What the rows name, on the device of the tables."""
        rows = Rows(*(tensor.to(self.vector_NE.device) for tensor in rows.tensors()))
        return Batch(
            rows.action_BL,
            rows.age_BL,
            self.vector_NE[rows.history_BL],
            self.category_NW[rows.history_BL],
            self.vector_NE[rows.candidate_BC],
            self.category_NW[rows.candidate_BC],
            torch.cat([self.number_NM[rows.candidate_BC], rows.item_number_BCK], dim=-1),
            rows.user_category_BW,
            rows.user_number_BM,
            rows.context_category_BW,
            rows.context_number_BM,
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch before the item table is read: row numbers and what belongs to the request, a few bytes a candidate."""

    action_BL: Tensor
    age_BL: Tensor
    history_BL: Tensor
    candidate_BC: Tensor
    item_number_BCK: Tensor
    user_category_BW: Tensor
    user_number_BM: Tensor
    context_category_BW: Tensor
    context_number_BM: Tensor

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _with_rows(old_NX: Tensor, num_rows: int, row_R: NDArray[np.int64], new_RX: NDArray[np.generic]) -> Tensor:
    """A copy with `num_rows` rows, those of `row_R` set."""
    all_NX = old_NX.new_zeros((num_rows, old_NX.shape[1]))
    all_NX[: len(old_NX)] = old_NX
    all_NX[torch.from_numpy(row_R).to(old_NX.device)] = torch.from_numpy(new_RX).to(old_NX.device)
    return all_NX


def _created_ms(item: Item) -> int:
    return int(item.get("created_at_ms") or 0)


def items_as_table(table: ItemTable) -> pa.Table:
    """The attributes of an item table's items; `items[n]` is row n."""
    return attributes_table(table.items, table.tower.attributes)


def attributes_table(items: Sequence[Item], attributes: Sequence[Attribute]) -> pa.Table:
    """Items as `AttributeEncoder` reads them."""
    schema = pa.schema([pa.field("item_id", pa.string()), *attribute_fields(attributes)])
    return pa.Table.from_pylist([dict(item) for item in items], schema=schema)
