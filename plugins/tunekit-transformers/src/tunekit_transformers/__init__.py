"""Models through transformers: pretraining, continued pretraining, and model sources."""
