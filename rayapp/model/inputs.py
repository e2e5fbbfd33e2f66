"""From hashes to tensors: the item table, the users' attributes and the encoders, as one model reads them.

Shapes: B requests, C candidates, L history rows (newest first), N item table rows, U versions of users, E vector
width, W category places, M numeric attributes, R changed rows, X columns of one of these.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import PAD, Attribute, attribute_fields
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.features.content import Item
from rayapp.features.requests import Requests
from rayapp.features.sequence import known_to
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Batch


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
class Inputs:
    """Everything a ranker looks up, on one device. Row 0 of an item or a user, "absent", is all zeros."""

    encoders: Encoders
    vocabulary_size: int
    table: ItemTable
    users: UserTable
    vector_NE: Tensor
    category_NW: Tensor
    number_NM: Tensor

    @staticmethod
    def of(table: ItemTable, users: UserTable, encoders: Encoders, vocabulary_size: int) -> "Inputs":
        category_NW, number_NM = encoders.item.encode(items_as_table(table))
        return Inputs(
            encoders,
            vocabulary_size,
            table,
            users,
            torch.from_numpy(table.vectors_NE),
            torch.from_numpy(np.pad(category_NW, [(1, 0), (0, 0)])),
            torch.from_numpy(np.pad(number_NM, [(1, 0), (0, 0)])),
        )

    def extended(self, table: ItemTable) -> "Inputs":
        """The same over `table`, which is this one's plus items put since; only those are encoded."""
        row_R = table.changed_since(self.table)
        category_RW, number_RM = self.encoders.item.encode(
            attributes_table([table.item(row) for row in row_R.tolist()], table.tower.attributes)
        )
        return dataclasses.replace(
            self,
            table=table,
            vector_NE=torch.from_numpy(table.vectors_NE).to(self.vector_NE.device),
            category_NW=_with_rows(self.category_NW, table.num_rows, row_R, category_RW),
            number_NM=_with_rows(self.number_NM, table.num_rows, row_R, number_RM),
        )

    def to(self, device: torch.device) -> "Inputs":
        tensors = {name: getattr(self, name).to(device) for name in ("vector_NE", "category_NW", "number_NM")}
        return dataclasses.replace(self, **tensors)

    def batch(self, requests: Requests) -> Batch:
        """Looks everything up. The history is cut to the longest one present: padding costs nothing."""
        longest = max(int(requests.sequences.length_R.max(initial=1)), 1)
        device, rows = self.vector_NE.device, self.look_up(requests, longest)
        return self.gather(Rows(*(tensor.to(device) for tensor in rows.tensors())))

    def look_up(self, requests: Requests, length: int) -> "Rows":
        """From hashes to rows, on the host; of each history the newest `length` places."""
        action_BL = known_to(self.vocabulary_size, requests.sequences.action_RL[:, :length])
        history_BL = np.where(action_BL == PAD, 0, self.table.rows_of(requests.sequences.item_hash_RL[:, :length]))
        user_B = self.users.rows_of(requests.user_hash_B, requests.timestamp_ms_B)
        context_category_BW, context_number_BM = self.encoders.context.encode(requests.context)
        return Rows(
            torch.from_numpy(action_BL.astype(np.int64)),
            torch.from_numpy(history_BL),
            torch.from_numpy(self.table.rows_of(requests.candidate_hash_BC)),
            torch.from_numpy(requests.item_rate_BCR),
            torch.from_numpy(self.users.category_UW[user_B]),
            torch.from_numpy(np.concatenate([self.users.number_UM[user_B], requests.user_rate_BR], axis=1)),
            torch.from_numpy(context_category_BW),
            torch.from_numpy(context_number_BM),
        )

    def gather(self, rows: "Rows") -> Batch:
        """What the rows name, on the device that holds both."""
        return Batch(
            rows.action_BL,
            self.vector_NE[rows.history_BL],
            self.vector_NE[rows.candidate_BC],
            self.category_NW[rows.candidate_BC],
            torch.cat([self.number_NM[rows.candidate_BC], rows.item_rate_BCR], dim=-1),
            rows.user_category_BW,
            rows.user_number_BM,
            rows.context_category_BW,
            rows.context_number_BM,
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch before the item table is read: row numbers and what belongs to the request, a few bytes a candidate."""

    action_BL: Tensor
    history_BL: Tensor
    candidate_BC: Tensor
    item_rate_BCR: Tensor
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


def items_as_table(table: ItemTable) -> pa.Table:
    """The attributes of an item table's items; `items[n]` is row n."""
    return attributes_table(table.items, table.tower.attributes)


def attributes_table(items: Sequence[Item], attributes: Sequence[Attribute]) -> pa.Table:
    """Items as `AttributeEncoder` reads them."""
    schema = pa.schema([pa.field("item_id", pa.string()), *attribute_fields(attributes)])
    return pa.Table.from_pylist([dict(item) for item in items], schema=schema)
