"""Documents of users: checked, identified and stored."""
