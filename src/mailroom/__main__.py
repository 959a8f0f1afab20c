"""``python -m mailroom``."""

from mailroom.cli.main import main

main()
