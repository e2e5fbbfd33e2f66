"""Every threshold of the gates and of the watch, with its default; `ROOT/retrain.toml` changes some of them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rayapp.contracts.tables import Table, read_toml
from rayapp.root.places import RETRAIN_LIMITS
from rayapp.root.publish import PublishError

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=0)]


class GateLimits(Table):
    """What a day and a model must keep to. Ratios are taken both ways: 2.0 means between half and twice."""

    min_requests: Count = 200
    """A day with fewer is not trained on."""
    min_requests_share: Number = 0.3
    """A day with a smaller share of the usual requests is not trained on."""
    min_hours_share: Number = 0.75
    """Of the hours in which requests usually come: a day with fewer is half a day."""
    max_action_ratio: Number = 3.0
    """An action's rate (per request) against the usual one. An action that vanished is always refused."""
    max_label_ratio: Number = 2.0
    """A head's label rate (per shown item) against the usual one."""
    max_user_share: Number = 0.1
    """One user's share of a day's events: a bot, or a broken client."""
    max_user_ratio: Number = 20.0
    """The most active user's events against the usual most active one's."""
    bot_events: Count = 1_000
    """A user with fewer events is nobody's concern."""
    max_champion_auc_drop: Number = 0.15
    """The champion's AUC on the new day below its last test: the day's labels are doubted, not the champion."""

    min_labels: Count = 50
    """A head (of a segment) with fewer labels in the window is not judged."""
    min_auc: Number = 0.55
    min_calibration: Number = 0.8
    max_calibration: Number = 1.25
    """Sum of the probabilities over the number of labels."""
    auc_margin: Number = 0.005
    segment_auc_margin: Number = 0.01
    entropy_margin: Number = 0.01
    recall_margin: Number = 0.01
    """Of recall@20, where nobody saw the lists of a day."""
    """Harm below a margin is borne; above it, it must also be `harm_errors` standard errors clear of nothing."""
    harm_errors: Number = 3.0
    max_score_shift: Number = 0.5
    """Of the mean feed score, in the champion's standard deviations."""
    max_score_psi: Number = 0.5
    """Population stability index of the feed score over the champion's deciles."""
    max_prediction_ratio: Number = 1.5
    """Of a head's mean probability against the champion's."""
    max_latency_ratio: Number = 1.5
    max_reload_difference: Number = 1e-3
    """Of any test metric, between the model before it was written and after it was read."""

    max_volume_ratio: Number = 3.0
    """Watch: requests, users and events against the usual."""
    max_mean_ratio: Number = 1.5
    """Watch: mean logged probability of a head against the usual one."""
    max_degraded_share: Number = 0.05
    """Watch: answers that a failing stage degraded."""
    min_parity_share: Number = 0.99
    """Watch: logged sequences that the pipeline cuts alike."""
    max_champion_age_days: Number = 7.0
    """Watch: since the end of the champion's newest data."""
    item_table_days: Number = 7.0
    """The item table is trained anew after so many days; in between new items are added to it."""


def read_limits(root: Path) -> GateLimits:
    """The defaults with what `retrain.toml` says instead.

    Raises:
        PublishError: it is no TOML, or names something that is no limit, or gives one a wrong type.
    """
    path = root / RETRAIN_LIMITS
    try:
        return read_toml(GateLimits, path.read_text(encoding="utf-8")) if path.exists() else GateLimits()
    except ValueError as error:
        raise PublishError(f"{path}: {error}") from None
