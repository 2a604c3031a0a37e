"""Supervised fine-tuning and preference alignment through TRL."""
