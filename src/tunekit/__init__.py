"""tunekit: the whole life of a language model, as one pipeline."""
