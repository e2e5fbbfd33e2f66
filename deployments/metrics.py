"""What the ingress measures, for Prometheus through Ray's exporter. Names are prefixed `ray_` there."""

import functools

import ray
from ray.serve import metrics

from rayapp.contracts.config import Domain
from rayapp.serving.feed import Answer

STAGE_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000]
PROBABILITY = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
AGE_S = [1, 10, 60, 600, 3_600, 86_400, 604_800]
MEASURED_ITEMS = 10
"""Of a list, for the distribution of probabilities: all of them would cost more than they tell."""


def count_replica() -> None:
    """Says on which node this replica runs; `sum by (deployment, node) (ray_rayapp_replicas)` shows how they spread.
    Replicas that all moved to one node stay there. Called with each health check: Ray drops a gauge that rests."""
    _replicas().set(1, {"node": ray.util.get_node_ip_address()})


@functools.cache
def _replicas() -> metrics.Gauge:
    return metrics.Gauge("rayapp_replicas", "Replicas, each counted where it runs.", tag_keys=("node",))


class Metrics:
    """Counters and histograms of one ingress replica."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._stage_ms = metrics.Histogram(
            "rayapp_stage_ms", "What a stage of a feed took.", STAGE_MS, tag_keys=("stage",)
        )
        self._answers = metrics.Counter(
            "rayapp_answers_total",
            "Feeds by model and by why they were less than they could be.",
            tag_keys=("model_version", "reason", "experiment"),
        )
        self._probability = metrics.Histogram(
            "rayapp_probability", "Predicted probabilities of shown items.", PROBABILITY, tag_keys=("head",)
        )
        self._age_s = metrics.Histogram(
            "rayapp_sequence_age_seconds", "Age of the newest action that a feed has seen.", AGE_S
        )
        self._rows_lost = metrics.Counter("rayapp_request_rows_lost_total", "Rows of the request log that were lost.")
        self._shadow_failed = metrics.Counter("rayapp_shadow_failed_total", "Answers that the shadow did not score.")

    def answered(self, answer: Answer) -> None:
        """One feed went out."""
        for stage, ms in answer.run.stage_ms.items():
            self._stage_ms.observe(ms, {"stage": stage})
        tags = {
            "model_version": answer.ranking.model_version if answer.ranking else "none",
            "reason": answer.reason or "none",
            "experiment": answer.assignment.label if answer.assignment else "none",
        }
        self._answers.inc(1, tags)
        for shown in answer.shown[:MEASURED_ITEMS]:
            if shown.probability_H is not None:
                for head, probability in zip(self.domain.head_names, shown.probability_H.tolist(), strict=False):
                    self._probability.observe(probability, {"head": head})
        if len(answer.user.history):
            age_s = (answer.ask.at_ms - int(answer.user.history.timestamp_ms_E[0])) / 1000
            self._age_s.observe(max(age_s, 0.0))

    def rows_lost(self, count: int) -> None:
        """Rows of the request log were dropped."""
        self._rows_lost.inc(count)

    def shadow_failed(self) -> None:
        """The shadow did not score an answer."""
        self._shadow_failed.inc()
