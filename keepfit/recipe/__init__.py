"""What a client may ask for: recipes, features, the catalogue of estimators, uploaded objects."""
