"""The model itself: the bundle of all that learned, its estimators, and how it learns and predicts."""
