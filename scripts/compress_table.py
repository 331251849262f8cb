"""Which timm models `donna compress` can make smaller, and how much of them.

    python scripts/compress_table.py resnet50 mobilenetv3_small_100 …

Prints a line a model: the share of its MACs in stages that have smaller choices, the MACs of the
cheapest network as a share of its own, how many networks there are, and the choices of each stage.
Then how many models have such stages, and how many have them for 70% of their MACs. A model that
cannot be cut is named, with the reason, and not counted.
"""

import argparse
from typing import Any

from donna_ray.errors import ConfigError
from donna_ray.reference.compressible import compression_facts

_MOST = 0.7  # of the MACs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", help="timm's names")
    facts = [_printed(name) for name in parser.parse_args().models]
    shares = [each["shrinkable"] for each in facts if each is not None]
    some, most = (sum(share > least for share in shares) for least in (0, _MOST))
    print(
        f"{some} of {len(shares)} models can be smaller, {most} of them in {_MOST:.0%} of the MACs"
    )


def _printed(name: str) -> dict[str, Any] | None:
    try:
        facts = compression_facts(name)
    except ConfigError as error:
        print(f"{name}: {error}")
        return None
    choices = ", ".join(str(stage["choices"]) for stage in facts["stages"])
    print(
        f"{name}: {facts['shrinkable']:.0%} of the MACs, down to {facts['least']:.0%}, "
        f"{facts['networks']:.3g} networks ({choices})"
    )
    return facts


if __name__ == "__main__":
    main()
