"""What queries of the history mean, and how documents are read and aggregated for them."""
