"""Run the `keepfit` command as ``python -m keepfit``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Python puts the working directory first: a user's `redis.py` or `random.py` there would be run as ours.
        del sys.path[0]
    from keepfit.cli.main import main

    main()
