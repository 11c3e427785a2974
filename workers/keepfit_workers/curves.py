"""Questions about the learning curve of a model: answered from its bundle, without a computation.

Owns the form of the answer, which gateways pass on, and its errors. Never changes a bundle.
"""

from typing import Any

from keepfit.errors import InvalidError, KeepfitError
from keepfit.jobs.messages import CurveOptions
from keepfit.model.bundle import Bundle
from keepfit.model.learning_curve import METRICS


def answer(bundle: Bundle, options: CurveOptions) -> dict[str, Any] | KeepfitError:
    """Return the points that `options` ask for, how far apart they are, where they begin, and the last scored rows.

    InvalidError is returned, not raised, if the model has no metric of a name.
    """
    curve = bundle.curve
    known = curve.names or METRICS.get(bundle.recipe.entry.kind, ())
    unknown = [name for name in options.metrics if name not in known]
    if unknown:
        has = f"its metrics are {', '.join(known)}" if known else f"{bundle.recipe.name} has no metrics"
        return InvalidError(f"The curve of the model has no metric {unknown[0]!r}: {has}.")
    points = curve.points(options.metrics or None, options.since_rows)
    scored = _scored(bundle) if bundle.recipe.entry.kind == "regressor" else []
    return {"rows_before": curve.rows_before, "spacing": curve.spacing, "points": points, "scored": scored}


def _scored(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the last scored rows of each output that has some."""
    found = []
    for position, scores in enumerate(bundle.prequential):
        truth, prediction = scores.scored.columns()
        if truth:
            name = bundle.targets[position] if position < len(bundle.targets) else None
            found.append({"output": position, "target": name, "truth": truth, "prediction": prediction})
    return found
