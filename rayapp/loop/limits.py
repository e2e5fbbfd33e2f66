"""Every threshold of the gates and of the watch, with its default; `ROOT/retrain.toml` changes some of them."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path

from rayapp.root.places import RETRAIN_LIMITS
from rayapp.root.publish import PublishError


@dataclass(frozen=True, kw_only=True, slots=True)
class GateLimits:
    """What a day and a model must keep to. Ratios are taken both ways: 2.0 means between half and twice."""

    min_requests: int = 200
    """A day with fewer is not trained on."""
    min_requests_share: float = 0.3
    """A day with a smaller share of the usual requests is not trained on."""
    min_hours_share: float = 0.75
    """Of the hours in which requests usually come: a day with fewer is half a day."""
    max_action_ratio: float = 3.0
    """An action's rate (per request) against the usual one. An action that vanished is always refused."""
    max_label_ratio: float = 2.0
    """A head's label rate (per shown item) against the usual one."""
    max_user_share: float = 0.1
    """One user's share of a day's events: a bot, or a broken client."""
    max_user_ratio: float = 20.0
    """The most active user's events against the usual most active one's."""
    bot_events: int = 1_000
    """A user with fewer events is nobody's concern."""
    max_champion_auc_drop: float = 0.15
    """The champion's AUC on the new day below its last test: the day's labels are doubted, not the champion."""

    min_labels: int = 50
    """A head (of a segment) with fewer labels in the window is not judged."""
    min_auc: float = 0.55
    min_calibration: float = 0.8
    max_calibration: float = 1.25
    """Sum of the probabilities over the number of labels."""
    auc_margin: float = 0.005
    segment_auc_margin: float = 0.01
    entropy_margin: float = 0.01
    """Harm below a margin is borne; above it, it must also be `harm_errors` standard errors clear of nothing."""
    harm_errors: float = 3.0
    max_score_shift: float = 0.5
    """Of the mean feed score, in the champion's standard deviations."""
    max_score_psi: float = 0.5
    """Population stability index of the feed score over the champion's deciles."""
    max_prediction_ratio: float = 1.5
    """Of a head's mean probability against the champion's."""
    max_latency_ratio: float = 1.5
    max_reload_difference: float = 1e-3
    """Of any test metric, between the model before it was written and after it was read."""

    max_volume_ratio: float = 3.0
    """Watch: requests, users and events against the usual."""
    max_mean_ratio: float = 1.5
    """Watch: mean logged probability of a head against the usual one."""
    max_degraded_share: float = 0.05
    """Watch: answers that a failing stage degraded."""
    min_parity_share: float = 0.99
    """Watch: logged sequences that the pipeline cuts alike."""
    max_champion_age_days: float = 7.0
    """Watch: since the end of the champion's newest data."""
    item_table_days: float = 7.0
    """The item table is trained anew after so many days; in between new items are added to it."""


def read_limits(root: Path) -> GateLimits:
    """The defaults with what `retrain.toml` says instead.

    Raises:
        PublishError: it is no TOML, or names something that is no limit, or gives one a wrong type.
    """
    path = root / RETRAIN_LIMITS
    if not path.exists():
        return GateLimits()
    try:
        given = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PublishError(f"{path} is not valid TOML: {error}") from None
    known = {field.name: field.type for field in dataclasses.fields(GateLimits)}
    for name, value in given.items():
        if name not in known:
            raise PublishError(f"{path} names {name!r}, which is no limit; known: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int if known[name] is int else int | float):
            raise PublishError(f"{path}: {name} must be {'a whole' if known[name] is int else 'a'} number: {value!r}")
        if value < 0:
            raise PublishError(f"{path}: {name} must not be negative: {value}")
    return GateLimits(**given)
