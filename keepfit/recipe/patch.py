"""Changes of a model's parameters, as far as they can be checked without scikit-learn.

Owns the words that the gateway and its checker process exchange about a change. Never builds an estimator. Changes come
from clients with ``PATCH /models/{hash}`` (docs/patch.md); :mod:`keepfit.model.parameters` checks and makes them.
"""

# Begins a line that holds a change for the checker process. No JSON document begins like this.
CHANGE = "change "
