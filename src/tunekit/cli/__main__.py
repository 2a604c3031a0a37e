"""``python -m tunekit.cli``."""

from tunekit.cli import main

main()
