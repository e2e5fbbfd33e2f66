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

from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.features.items import Item
from rayapp.features.requests import Requests
from rayapp.features.sequence import known_to
from rayapp.hashing import hash64_column
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Batch
from rayapp.schema import PAD, Attribute, attribute_fields


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
        device = self.vector_NE.device
        longest = max(int(requests.sequences.length_R.max(initial=1)), 1)
        action_BL = known_to(self.vocabulary_size, requests.sequences.action_RL[:, :longest])
        history_BL = np.where(action_BL == PAD, 0, self.table.rows_of(requests.sequences.item_hash_RL[:, :longest]))
        candidate_BC = torch.from_numpy(self.table.rows_of(requests.candidate_hash_BC)).to(device)
        user_B = self.users.rows_of(requests.user_hash_B, requests.timestamp_ms_B)
        context_category_BW, context_number_BM = self.encoders.context.encode(requests.context)

        def tensor(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(device)

        return Batch(
            tensor(action_BL.astype(np.int64)),
            self.vector_NE[tensor(history_BL)],
            self.vector_NE[candidate_BC],
            self.category_NW[candidate_BC],
            torch.cat([self.number_NM[candidate_BC], tensor(requests.item_rate_BCR)], dim=-1),
            tensor(self.users.category_UW[user_B]),
            torch.cat([tensor(self.users.number_UM[user_B]), tensor(requests.user_rate_BR)], dim=-1),
            tensor(context_category_BW),
            tensor(context_number_BM),
        )


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
