"""Every place under a root, by name: who wants to know what lies where reads this, and `docs/data.md` tells it.

Files of a place, such as a model's, are its own room's affair.
"""

from typing import Final

# What imports and exports make.
ROOT_FILE: Final = "root.json"
ITEMS: Final = "catalogue"
USERS: Final = "users"
EVENTS: Final = "events"
REQUESTS: Final = "requests"
AGREED_STEPS: Final = "agreed_steps.jsonl"
QUARANTINE: Final = "quarantine"
IMPORT_STAGING: Final = ".staging"

# What training makes of the logs.
WINDOWS: Final = "windows"
STATISTICS: Final = "statistics"
STATISTICS_STAGING: Final = ".statistics-staging"
ENGAGEMENTS_STAGING: Final = ".engagements"
ITEM_TABLES: Final = "item_tables"
RUNS: Final = "runs"
MODELS: Final = "models"

# Which model is live, and why.
ALIASES: Final = "aliases"
VERDICTS: Final = "verdicts"
RETRAININGS: Final = "retrainings"
RETRAINING_LOG: Final = "retrainings.jsonl"
RETRAIN_LIMITS: Final = "retrain.toml"
EXPERIMENTS_FILE: Final = "experiments.toml"
EXPERIMENTS_STATE: Final = "experiments.state.json"

# What serving needs.
STORE: Final = "store"
STORE_FILE: Final = "store.json"
KEYS_FILE: Final = "keys.json"
ERASED: Final = "erased"
EXPORTS: Final = "exports"
"""Directory whose lock an export holds; imports and compactions hold it too, a training does not."""
SERVING: Final = "serving"
"""Directory whose lock `rayapp serve` holds."""

DOWNLOADS: Final = "download"
"""What the demo fetched or made up."""
