"""The root that the serving benches serve: a made-up world's catalogue, item table and histories, and rankers of the
published size that nobody trained: what an answer costs does not depend on the weights.
"""

import time
import uuid
from pathlib import Path
from typing import Final

import numpy as np

from rayapp.contracts.config import MINUTE_MS, Domain
from rayapp.contracts.presets import PRESETS
from rayapp.contracts.schema import Event
from rayapp.importing.domains import load_domain
from rayapp.launch.runtime import local_ray
from rayapp.loop.artifacts import build_windows, item_table
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import split_of
from rayapp.model.calibration import Calibration
from rayapp.pipeline.restore import seed_store
from rayapp.pipeline.tasks import run_tasks
from rayapp.registry.aliases import CHAMPION, promote
from rayapp.registry.models import publish_model
from rayapp.root import places
from rayapp.root.facts import read_root
from rayapp.sources.synthetic import World, write_world
from rayapp.store.opening import open_store
from rayapp.training.start import start

WORLD: Final = World(num_users=120, num_items=2_000, num_days=10, sessions_per_day=0.3)
MODELS: Final = ("bench-a", "bench-b")
"""Two models that answer differently; the first is the champion."""
USERS: Final = tuple(f"bench-{n}" for n in range(64))
ACTIONS: Final = 120
"""Actions of each of them: more than the model reads, so that every request is a full one."""
QUIET_MINUTES: Final = 60
"""Since the last of them: then a second more or less changes no score."""


def make_served_root(root: Path, preset_name: str) -> None:
    """Makes what is missing, which takes about a minute the first time."""
    domain_file = load_domain("synthetic")
    if not (root / places.MODELS / MODELS[-1]).exists():
        with local_ray(spare_cpus=0):
            import_once(root, domain_file, lambda: write_world(WORLD, root / "raw", run_tasks))
            prepared, _ = build_windows(root, domain_file.domain, split_of(root))
            table, _ = item_table(root, prepared, PRESETS[preset_name]())
            for seed, version in enumerate(MODELS):
                publish_untrained(root, domain_file.domain, preset_name, table, version, seed)
    promote(root, CHAMPION, MODELS[0])


def publish_untrained(root: Path, domain: Domain, preset_name: str, table: str, version: str, seed: int) -> None:
    """A model of the preset with drawn weights."""
    if (root / places.MODELS / version).exists():
        return
    preset = PRESETS[preset_name]().seeded(seed)
    drawn = start(root, preset, table, domain, None)
    publish_model(
        root,
        version,
        ranker=drawn.ranker,
        config=preset.model,
        domain=domain,
        encoders=drawn.inputs.encoders,
        calibration=Calibration.none(len(domain.heads)),
        item_table=table,
        metrics={"test_window": None, "heads": {name: {"auc": None, "hit3": None} for name in domain.head_names}},
        lineage={"created_at_ms": time.time_ns() // 1_000_000, "trained": False, "seed": seed},
    )


def fill_store(root: Path, url: str | None = None) -> None:
    """Restores the log into the store and gives every one of USERS a full history."""
    seed_store(root, url)
    domain, _ = read_root(root)
    actions = [a.name for a in domain.vocabulary.actions if a.in_sequence]
    rng, now_ms = np.random.default_rng(7), time.time_ns() // 1_000_000
    store = open_store(root, url)
    try:
        missing = [user for user in USERS if len(store.lookup(user).history) < ACTIONS]
        events = [
            Event(
                event_id=str(uuid.uuid4()),
                user_id=user,
                item_id=f"i{rng.integers(WORLD.num_items)}",
                action=actions[rng.integers(len(actions))],
                timestamp_ms=now_ms - (n + QUIET_MINUTES) * MINUTE_MS,
                received_at_ms=now_ms - (n + QUIET_MINUTES) * MINUTE_MS,
            )
            for user in missing
            for n in range(ACTIONS)
        ]
        if events:
            store.append(events)
    finally:
        store.close()
