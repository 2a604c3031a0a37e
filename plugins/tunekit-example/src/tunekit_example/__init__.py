"""A plugin for tunekit to read and to copy."""
