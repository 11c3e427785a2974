"""Run the `keepfit` command as ``python -m keepfit``."""

from keepfit.cli import main

if __name__ == "__main__":
    main()
