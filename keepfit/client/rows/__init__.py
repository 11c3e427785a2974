"""Rows as a caller gives them, as the bodies of requests, and the predictions that come back."""
