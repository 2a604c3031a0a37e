"""Proximal policy optimisation of language models."""
