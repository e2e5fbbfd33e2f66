"""Best-of jobs go by the domain's rules as feeds do: what is seen, what is capped, what was deleted. No Ray."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayapp.batch.grouped_rows import group_rows
from rayapp.batch.job import InputKind, Job, workspace
from rayapp.batch.output import as_table
from rayapp.batch.part import PartScorer
from rayapp.contracts.config import FOREVER, Cap, Domain
from rayapp.contracts.json_values import to_json
from rayapp.contracts.schema import bucket_of
from rayapp.pipeline.export import export_all
from rayapp.pipeline.statistics import count_statistics
from rayapp.root.catalogue import read_catalogue
from rayapp.root.places import ROOT_FILE
from rayapp.root.publish import read_json, write_json
from rayapp.store.lmdb import LmdbStore
from tests.conftest import T0, make_event
from tests.tiny_models import item_table

NOW = T0 + 86_400_000
TOP = 12


def best_of(root: Path, out: Path, top_k: int) -> list[str]:
    """The best items of the user u1, as a job writes them."""
    job = Job(root=str(root), kind=InputKind.USERS, model_version="a", as_of_ms=NOW, num_candidates=30, top_k=top_k)
    with workspace(out, job, overwrite=True) as work:
        write_json(work.directory / "staged.json", {"partitions": 4})
        pq.write_table(read_catalogue(root), work.directory / "catalogue.parquet")
        scorer = PartScorer(work, torch.device("cpu"))
        rows = pa.table({"user_id": ["u1"], "source_file": [0], "source_row": [0]})
        grouped = group_rows(rows, scorer._domain, NOW)
        (piece,) = scorer._pieces(grouped, "a", bucket_of("u1", 4))
        table = as_table(piece, scorer._domain, top_k, None)
    assert table["rank"].to_pylist() == list(range(1, table.num_rows + 1))
    return [str(item_id) for item_id in table["item_id"].to_pylist()]


def test_the_best_of_a_user_keep_the_domain_s_rules(
    models: tuple[Path, LmdbStore], domain: Domain, without_ray: None, tmp_path: Path
) -> None:
    root, store = models
    for item in item_table(domain).items:
        store.put_item(dict(item))
    store.append(
        [
            make_event(1, item="i4", action="save", at=T0),
            make_event(2, item="i5", action="click", at=T0 + 1),
        ]
    )
    export_all(root, store, T0)
    count_statistics(root, domain)
    usual = best_of(root, tmp_path / "usual", TOP)
    assert len(usual) == TOP
    assert not {"i4", "i5"} & set(usual)
    rules = dataclasses.replace(domain, seen_ms={"save": FOREVER}, caps={"genres": Cap(most=1, of=3)})
    write_json(root / ROOT_FILE, {**read_json(root / ROOT_FILE), "domain": to_json(rules)})
    everything = best_of(root, tmp_path / "everything", 0)
    assert set(everything) == {f"i{n}" for n in range(30)} - {"i4"}, "a click does not count any more"
    for top_k, found in ((TOP, best_of(root, tmp_path / "some", TOP)), (30, everything)):
        genres = [int(item_id[1:]) % 3 for item_id in found][: min(top_k, 24)]
        assert all(len({*genres[n : n + 3]}) == 3 for n in range(len(genres) - 2)), genres
    deleted = everything[0]
    store.put_item({"item_id": deleted, "deleted": True})
    export_all(root, store, T0)
    assert deleted not in best_of(root, tmp_path / "without", 0)
