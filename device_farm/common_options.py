"""The options that `donna` and `device-farm` share; `ending` heeds all that every command has."""

from typing import Annotated

import typer

__all__ = ["SustainedOption", "add_common_options"]

SustainedOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=1,
        max=86_400,
        help="Then run it without pause for so long, such as 60: does the device throttle?",
    ),
]


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
