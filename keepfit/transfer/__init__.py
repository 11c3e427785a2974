"""Export and import: models moved in one file."""
