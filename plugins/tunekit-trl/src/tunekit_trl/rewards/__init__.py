"""Rewards that check completions by rule: right answers, forms, lengths. Standard library only."""
