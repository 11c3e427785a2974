"""Files of rows, and of trained estimators, that a client sends or writes."""
