"""Data that come with every Python: for trying out and for tests, not for a model anyone uses."""
