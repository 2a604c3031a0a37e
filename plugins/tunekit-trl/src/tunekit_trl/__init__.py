"""Supervised fine-tuning, preference alignment, reward models and reinforcement learning, equal to TRL in numbers."""
