"""Boards at a glance: groups, order, and the unconfirmed paths of one."""

from __future__ import annotations

from qslm_edge.profiles import Profile, list_profiles, load_profile
from qslm_edge.profiles.overview import grouped, unconfirmed


def changed(**values: object) -> Profile:
    data = load_profile("raspberry-pi-5-8gb").model_dump(mode="json", by_alias=True)
    return Profile.model_validate({**data, **values})


def test_every_board_stands_in_one_group() -> None:
    profiles = list_profiles()
    shown = [board.id for _, boards in grouped(profiles) for board in boards]
    assert sorted(shown) == [profile.id for profile in profiles]


def test_status_comes_before_family() -> None:
    groups = {title: [board.id for board in boards] for title, boards in grouped(list_profiles())}
    assert next(iter(groups)) == "NVIDIA Jetson"
    assert list(groups)[-2:] == ["Legacy boards", "Development hosts"]
    assert groups["Legacy boards"] == ["jetson-nano", "jetson-xavier-nx"]
    assert groups["Development hosts"] == ["apple-m"]
    assert "Apple computers" not in groups


def test_numbers_in_an_id_count_as_numbers() -> None:
    boards = dict(grouped(list_profiles()))["Raspberry Pi"]
    assert [board.id for board in boards] == [
        "raspberry-pi-4",
        "raspberry-pi-5-4gb",
        "raspberry-pi-5-8gb",
        "raspberry-pi-5-16gb",
        "raspberry-pi-zero-2w",
    ]


def test_a_file_that_names_no_family_is_another_board() -> None:
    data = load_profile("raspberry-pi-5-8gb").model_dump(mode="json", by_alias=True)
    del data["family"]
    assert grouped([Profile.model_validate(data)])[0][0] == "Other boards"


def test_unconfirmed_paths_are_as_short_as_they_can_be() -> None:
    assert unconfirmed(load_profile("raspberry-pi-4")) == (
        "memory.visible_mib",
        "memory.bandwidth_gb_s",
        "idle_w",
        "match",
    )


def test_a_path_that_covers_something_confirmed_is_not_shortened() -> None:
    profile = changed(
        grades={
            "*": "sourced",
            "memory": "unconfirmed",
            "memory.kind": "sourced",
            "power.total": "unconfirmed",
        }
    )
    assert unconfirmed(profile) == (
        "memory.visible_mib",
        "memory.budget_mib",
        "memory.bandwidth_gb_s",
        "power.total",
    )


def test_nothing_unconfirmed() -> None:
    assert unconfirmed(changed(grades={"*": "sourced"})) == ()
