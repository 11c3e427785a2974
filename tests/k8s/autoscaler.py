"""The autoscaler that a ScaledObject makes, simulated: KEDA's external metric and the algorithm of the HPA.

Owns the numbers of replicas over simulated time. From the public references: KEDA passes `threshold` as AverageValue;
the HPA takes ceil(metric / threshold), changes nothing within a tenth of the target, takes the least of the wishes
within the window of `scaleUp` and the greatest within that of `scaleDown`, and limits each change by its policies.
Never looks at a clock: each step is one polling interval.
"""

import math
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.1


@dataclass(slots=True)
class Autoscaler:
    """The autoscaler of `spec`, the spec of a ScaledObject; `replicas` are those at the begin."""

    spec: dict[str, Any]
    replicas: int
    now_s: float = 0.0
    _wishes: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    @property
    def trigger(self) -> dict[str, str]:
        """The metadata of the trigger by waiting work."""
        (found,) = [one["metadata"] for one in self.spec["triggers"] if one["type"] == "prometheus"]
        return dict(found)

    def step(self, value: float) -> int:
        """Let one polling interval pass; return the number of replicas that `value` of the query leads to."""
        self.now_s += self.spec["pollingInterval"]
        threshold = float(self.trigger["threshold"])
        wish = self.replicas
        if abs(value / (threshold * self.replicas) - 1) > TOLERANCE:
            wish = math.ceil(value / threshold)
        wish = min(max(wish, int(self.spec["minReplicaCount"])), int(self.spec["maxReplicaCount"]))
        behavior = self.spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        up = min([wish, *self._recent(behavior["scaleUp"])])
        down = max([wish, *self._recent(behavior["scaleDown"])])
        self._wishes.append((self.now_s, wish))
        wanted = up if up > self.replicas else min(down, self.replicas)
        if wanted > self.replicas:
            wanted = min(wanted, max(self._bound(policy, 1) for policy in behavior["scaleUp"]["policies"]))
        elif wanted < self.replicas:
            wanted = max(wanted, min(self._bound(policy, -1) for policy in behavior["scaleDown"]["policies"]))
        if wanted != self.replicas:
            self._changes.append((self.now_s, wanted - self.replicas))
        self.replicas = wanted
        return wanted

    def _recent(self, rules: dict[str, Any]) -> list[int]:
        since_s = self.now_s - rules["stabilizationWindowSeconds"]
        return [wish for at_s, wish in self._wishes if at_s > since_s]

    def _bound(self, policy: dict[str, Any], sign: int) -> int:
        """Return how many replicas a policy allows, from those at the begin of its period."""
        since_s = self.now_s - policy["periodSeconds"]
        begin = self.replicas - sum(change for at_s, change in self._changes if at_s > since_s and change * sign > 0)
        if policy["type"] == "Pods":
            return begin + sign * int(policy["value"])
        return math.ceil(begin * (1 + sign * int(policy["value"]) / 100))
