"""Finds items by a piece of their id or title, for people who look at a feed and want to know what is in it.

Shapes: N item table rows (row 0 is "absent").
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.contracts.schema import is_deleted
from rayapp.features.content import Item
from rayapp.model.item_table import ItemTable
from rayapp.retrieval.index import CandidateIndex


@dataclass(frozen=True, slots=True)
class ItemTexts:
    """Ids and titles of one item table, without case. A search reads each once, in Arrow's own loops: a million take
    some tens of milliseconds."""

    table: ItemTable
    title: str
    """The domain's."""
    texts: pa.Array
    """`[N]`; null for what no search finds."""

    @classmethod
    def of(cls, table: ItemTable, title: str) -> Self:
        return cls(table, title, pa.array([None, *_texts(table.items, title)], pa.large_string()))

    def following(self, table: ItemTable) -> "ItemTexts":
        """Those of `table`, which may be this one's plus items put since."""
        if table.tower is not self.table.tower:  # another table, or the same one loaded again
            return ItemTexts.of(table, self.title)
        if table is self.table:
            return self
        changed = table.changed_since(self.table)
        num_new = table.num_rows - self.table.num_rows
        texts = pa.concat_arrays([self.texts, pa.nulls(num_new, pa.large_string())])
        mask = np.zeros(table.num_rows, bool)
        mask[changed] = True
        news = pa.array(_texts((table.item(row) for row in changed.tolist()), self.title), pa.large_string())
        return ItemTexts(table, self.title, pc.replace_with_mask(texts, pa.array(mask), news))

    def find(self, query: str, limit: int, index: CandidateIndex) -> list[Item]:
        """Items that hold `query`, whatever its case: the one of that id first, then the most popular. `index` is over
        the same table."""
        found_N = pc.fill_null(pc.match_substring(self.texts, query.casefold()), fill_value=False)
        found_N = found_N.to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(found_N)
        named = self.table.rows_of_ids([query])
        order = np.lexsort((rows, -index.orders.popularity_N[rows], rows != named[0]))
        return [self.table.item(row) for row in rows[order][:limit].tolist()]


def _texts(items: Iterable[Item], title: str) -> list[str | None]:
    """A line break parts id and title: no id holds one."""
    return [None if is_deleted(item) else f"{item['item_id']}\n{item.get(title) or ''}".casefold() for item in items]
