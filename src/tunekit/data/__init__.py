"""Canonical rows out of files, lists and data sets."""
