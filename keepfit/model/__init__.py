"""The model: its bundle, its estimators, and how it learns and predicts."""
