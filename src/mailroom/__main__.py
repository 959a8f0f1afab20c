"""``python -m mailroom``."""

from mailroom.cli import main

main()
