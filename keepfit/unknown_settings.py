"""Find variables of the environment that look like settings and are none, such as a misspelled one."""

import os
from collections.abc import Iterable
from difflib import get_close_matches

from keepfit.client_settings import PREFIX
from keepfit.settings import Settings

# Read by the command line for tests of failures; not a setting of a service.
FAULT_POINT = "KEEPFIT_FAULT_POINT"


def unknown_variables(names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the variables named ``KEEPFIT_…`` that are no setting, each with the most similar one, or "".

    `names` are those of the environment by default. Names are case-insensitive.

    >>> unknown_variables(["KEEPFIT_PROT", "KEEPFIT_PORT", "keepfit_workers", "PORT", "KEEPFIT_XYZZY"])
    {'KEEPFIT_PROT': 'KEEPFIT_PORT', 'KEEPFIT_XYZZY': ''}
    """
    known = [name.upper() for name in Settings.model_fields]
    found = [name for name in (os.environ if names is None else names) if name.upper().startswith(PREFIX)]
    rest_of = {name: name.upper().removeprefix(PREFIX) for name in sorted(found) if name.upper() != FAULT_POINT}
    # Compared without the prefix, which makes every two names similar.
    similar = {name: get_close_matches(rest, known, n=1) for name, rest in rest_of.items() if rest not in known}
    return {name: PREFIX + match[0] if match else "" for name, match in similar.items()}
