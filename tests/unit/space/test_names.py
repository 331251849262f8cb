"""How a network is named: by an id, its beginning, or its block in each stage."""

from __future__ import annotations

from itertools import product

import pytest
from pydantic import ValidationError

from donna_ray.config import FinetuneConfig
from donna_ray.errors import ConfigError
from donna_ray.space import architecture_named
from donna_ray.space.names import check_name
from tests.search_problems import toy

SPACE = toy((3, 4, 5)).space
IDS = {SPACE.id_of(each): each for each in product(range(3), range(4), range(5))}
KNOWN = dict(list(IDS.items())[:3])
FIRST = next(iter(KNOWN))


@pytest.mark.parametrize("name", ["2-0-4", SPACE.id_of((2, 0, 4)), SPACE.id_of((2, 0, 4))[:9]])
def test_network_has_three_kinds_of_names(name: str) -> None:
    assert architecture_named(name, SPACE, KNOWN) == (2, 0, 4)


def test_number_names_the_block_where_there_is_one_stage() -> None:
    """And not a network whose id begins with it."""
    space = toy((30,)).space
    ids = {space.id_of((each,)): (each,) for each in range(30)}
    crossed = next(each for each in ids if each[0].isdigit() and ids[each] != (int(each[0]),))
    assert architecture_named(crossed[0], space, ids) == (int(crossed[0]),)
    assert architecture_named(crossed, space, ids) == ids[crossed]
    with pytest.raises(ConfigError, match="begins with '30'"):
        architecture_named("30", space, {})


def test_known_networks_come_before_all_others() -> None:
    """Of a short beginning that several of the space have, but one that is known."""
    crowded = {each: IDS[each] for each in IDS if sum(own[0] == each[0] for own in IDS) > 1}
    one = next(iter(crowded))
    assert architecture_named(one[0], SPACE, {one: crowded[one]}) == crowded[one]
    with pytest.raises(ConfigError, match=f"networks have an id that begins with '{one[0]}'"):
        architecture_named(one[0], SPACE, {})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("xyz", f"no network that is known has an id that begins with 'xyz'.*{min(KNOWN)}"),
        ("", "begins with ''"),
        (f"{FIRST}0", "begins with"),
        ("1-2", "one number for each stage, up to 2-3-4, but is 1-2"),
        ("0-0-0-0", "up to 2-3-4, but is 0-0-0-0"),
        ("0-4-0", "up to 2-3-4, but is 0-4-0"),
    ],
)
def test_name_of_no_network_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        architecture_named(name, SPACE, KNOWN)
    assert "\n" not in str(caught.value)


def test_name_is_refused_before_anything_is_known() -> None:
    for name in ("2-0-4", *IDS, FIRST[:1]):
        check_name(name, SPACE)
    for name in ("2-0-5", f"{FIRST}0"):
        with pytest.raises(ConfigError, match=r"Correct it"):
            check_name(name, SPACE)
    check_name("abc", toy((40,) * 6).space)  # which may be the id of one


def test_large_space_is_not_looked_through() -> None:
    large = toy((40,) * 6).space
    with pytest.raises(ConfigError, match=r"no network that is known.*such as .*0123"):
        architecture_named("abc", large, {"0123": (0,) * 6})
    assert architecture_named("01", large, {"0123": (0,) * 6}) == (0,) * 6


@pytest.mark.parametrize("name", ["", "XY", "3-", "-1", 394, "0" * 17, None])
def test_configuration_refuses_what_is_no_name(name: object) -> None:
    with pytest.raises(ValidationError, match=r"quote it in YAML"):
        FinetuneConfig.model_validate({"architectures": [name]})
    assert FinetuneConfig.model_validate({"architectures": ["3f", "3-0-17"]})
