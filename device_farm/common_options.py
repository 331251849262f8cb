"""The options that `donna` and `device-farm` share; all but `--version` are heeded by `ending`."""

from typing import Annotated

import typer

__all__ = ["add_common_options"]


def add_common_options(app: typer.Typer, version: str, text: str) -> None:
    """Give a command line `--version`, `--verbose`, `--quiet` and `--debug`.

    Args:
        app: without a callback.
        version: what `--version` prints.
        text: the help of the command line as a whole.
    """

    def print_version(asked: bool) -> None:
        if asked:
            print(version)
            raise typer.Exit

    @app.callback(help=text)
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", is_eager=True, callback=print_version, help="Print the version."
            ),
        ] = False,
        verbose: Annotated[
            bool, typer.Option("-v", "--verbose", help="Also print what libraries and workers log.")
        ] = False,
        quiet: Annotated[
            bool, typer.Option("-q", "--quiet", help="Print warnings and errors alone.")
        ] = False,
        debug: Annotated[
            bool, typer.Option("--debug", help="Show the traceback of an error.")
        ] = False,
    ) -> None:
        pass
