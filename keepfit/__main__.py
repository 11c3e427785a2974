"""Run the `keepfit` command as ``python -m keepfit``."""

from keepfit.cli.main import main

if __name__ == "__main__":
    main()
