"""Figures that River and scikit-learn publish, computed by their own code and by a running keepfit."""
