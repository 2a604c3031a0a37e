"""Models through transformers: pretraining from scratch, continued pretraining, and model sources (folder, GGUF, hub id)."""
