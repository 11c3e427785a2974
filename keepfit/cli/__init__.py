"""The command line: one module per group of commands, assembled by :mod:`keepfit.cli.main`."""
