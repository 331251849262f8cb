"""``donna library ls | show | verify | gc | clean``. Imports torch only once a command is run."""

from typing import Annotated, Any

import typer

from donna_ray.cli.options import JsonOption, examples, print_facts

__all__ = ["app"]

app = typer.Typer()

PlaceArgument = Annotated[
    str,
    typer.Argument(metavar="RUN_OR_STORE", help="A run or a store, each by its folder or URL."),
]


@app.command("ls", epilog=examples("donna library ls runs/demo --stage 0"))
def list_blocks(
    place: PlaceArgument,
    stage: Annotated[int | None, typer.Option(min=0, help="This stage only, from 0.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the blocks by stage and NSR: params, MACs, seconds of training, failed or not."""
    from donna_ray.cli.tables import print_blocks
    from donna_ray.library.tools import blocks_of, library_of

    print_facts(blocks_of(library_of(place).store, stage), as_json, print_blocks)


@app.command(epilog=examples("donna library show runs/demo KEY"))
def show(
    place: PlaceArgument,
    key: Annotated[str, typer.Argument(help="Of the record, as `ls` prints it.")],
    as_json: JsonOption = False,
) -> None:
    """Print a whole record and its files."""
    from donna_ray.cli.tables import print_record
    from donna_ray.library.tools import library_of, record_of

    print_facts(record_of(library_of(place).store, key), as_json, print_record)


@app.command(epilog=examples("donna library verify s3://BUCKET/blocks"))
def verify(place: PlaceArgument, as_json: JsonOption = False) -> None:
    """Read every file of every record; exit with 1 and the keys if any is bad."""
    from donna_ray.library.tools import bad_records, library_of

    store = library_of(place).store
    bad = bad_records(store)
    facts = {"intact": len(store.records()), "bad": list(bad)}
    print_facts(facts, as_json, _print_verified)
    if bad:
        raise typer.Exit(1)


@app.command(epilog=examples("donna library gc runs/demo --dry-run"))
def gc(
    place: PlaceArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what killed processes left, and blocks that no library of the run refers to.

    Blocks are left alone where other runs may use them: in a store outside of the run folder.
    """
    from donna_ray.library.tools import collect_garbage, library_to_clean

    facts = collect_garbage(library_to_clean(place), dry_run=dry_run)
    print_facts(facts, as_json, _print_garbage)


@app.command(epilog=examples("donna library clean --days 7"))
def clean(
    days: Annotated[float, typer.Option(min=0, help="Since a command has used it.")] = 30.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing.")] = False,
) -> None:
    """Remove working copies, in your cache, of runs at URLs; not what is not at its URL yet."""
    from donna_ray.run.copies import clean_copies

    verb = "would remove" if dry_run else "removed"
    for each in clean_copies(days, dry_run=dry_run):
        words = f"{verb} {each['path']}" if each["kept"] is None else f"kept {each['path']}"
        why = f": {each['kept']}" if each["kept"] else ""
        print(f"{words} ({each['bytes'] / 1e6:.3g} MB){why}")


def _print_verified(facts: dict[str, Any]) -> None:
    for key in facts["bad"]:
        print(key)
    bad = len(facts["bad"])
    print(f"records: {facts['intact']} intact, {bad} torn, altered or half there")


def _print_garbage(facts: dict[str, Any]) -> None:
    verb = "removed" if facts["removed"] else "would remove"
    for name in facts["stale_files"]:
        print(f"{verb} file {name}")
    for key in facts["blocks"]:
        print(f"{verb} block {key}")
    if facts["blocks_kept"]:
        print(f"blocks are kept: {facts['blocks_kept']}")
    files, blocks = len(facts["stale_files"]), len(facts["blocks"])
    print(f"{verb} in all: {files} stale files, {blocks} blocks, {facts['bytes'] / 1e6:.3g} MB")
