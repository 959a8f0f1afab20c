"""``mailroom init``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
def init(folder: Path) -> None:
    """Write files to start from: the mails and the settings.

    FOLDER, by default the current one, gets mails/, with actions.toml and the templates of the two actions
    that a new database has, and mailroom.env, with the settings to fill in and a new key. No file is
    overwritten. `mailroom actions add` copies more actions.
    """
    from mailroom.operations.action_files import write_start

    for path in write_start(folder):
        click.echo(path)
