"""The three tiers on synthetic landscapes, against a slow reimplementation and property by property."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.metrics import Paired
from qslm_edge.quantize.levels import Level, Setting, parse_level
from qslm_edge.search.sensitivity import Sensitivity
from qslm_edge.search.space import LevelMap
from qslm_edge.search.tiers import TieredSearch
from qslm_edge.search.trial import Trial
from qslm_edge.spikegpt import Hierarchy, SpikeGPTConfig, build_hierarchy

LISTS = ("16 8g64 4g64 2g64", "8g64 4g32 4g64", "16 4g32", "4g64", "32 16 8g32 4g32 2g32")
LOSS = {32: 0.0, 16: 0.0, 8: 0.02, 4: 0.2, 2: 1.0, 1: 0.0}
Ok = Callable[[Setting], bool]


@dataclass(frozen=True)
class Case:
    """A model shape, a list of levels, what performs, and how sensitive blocks are."""

    hierarchy: Hierarchy
    space: LevelMap
    levels: tuple[Level, ...]
    ok: Ok
    table: tuple[Sensitivity, ...]


def make_case(
    n_layer: int, head: str, texts: str, seed: int, limit: float, noise: float, c: int = 64
) -> Case:
    config = SpikeGPTConfig(n_layer, c, 2 * c, 11, "dense" if seed % 3 else "binary", num_labels=2)
    hierarchy = build_hierarchy(config, "lm" if head == "lm" else "classifier")

    def draw(*parts: object) -> float:
        digest = hashlib.sha256(repr((seed, parts)).encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def ok(setting: Setting) -> bool:
        loss = sum(draw(name) * LOSS[level.bits] for name, level in setting.levels)
        return loss + noise * (draw(str(setting.to_dict())) - 0.5) <= limit

    levels = tuple(parse_level(text) for text in texts.split())
    table = tuple(
        Sensitivity(block.name, str(level), 0.0, 0.0, draw(block.name, str(level)), 1, 1, "measured")
        for block in hierarchy.blocks
        if block.modules
        for level in levels
    )
    return Case(hierarchy, LevelMap(config), levels, ok, table)


cases = st.builds(
    make_case,
    st.integers(1, 3),
    st.sampled_from(["lm", "classifier"]),
    st.sampled_from(LISTS),
    st.integers(0, 10**6),
    st.sampled_from([-1.0, 0.1, 0.5, 1.0, 3.0, 100.0]),
    st.sampled_from([0.0, 0.1, 2.0]),
    st.sampled_from([64, 96, 100]),
)


def fake_trial(setting: Setting, tier: str, step: str, ok: bool, violation: str | None = None) -> Trial:
    comparison = Paired(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1)
    return Trial(setting, tier, step, 1, 1, comparison, 0.0, 1, 1, ok, violation)


def run(case: Case, violation: str | None = None) -> list[Trial]:
    def judge(setting: Setting, tier: str, step: str) -> Trial:
        return fake_trial(setting, tier, step, case.ok(setting), violation)

    return TieredSearch(case.hierarchy, case.levels, case.space, judge, case.table).run()


def slow_search(case: Case) -> Iterator[tuple[str, dict[str, Level], bool]]:
    """The tiers over plain dictionaries: (tier, levels, whether it performs), in the order of trying."""

    def performs(levels: dict[str, Level]) -> bool:
        return case.ok(Setting(tuple(levels.items())))

    def take(names: list[str], at: int) -> dict[str, Level]:
        by_name = {m.name: m for m in case.hierarchy.modules}
        return {name: case.space.level(by_name[name], case.levels[at]) for name in names}

    everything = [m.name for m in case.hierarchy.modules]
    best, depth = None, -1
    for at in range(len(case.levels)):
        levels = take(everything, at)
        good = performs(levels)
        yield "global", levels, good
        if not good:
            break
        best, depth = levels, at
    if best is None or depth == len(case.levels) - 1:
        return

    def descend(names: list[str], start: int, tier: str) -> Iterator[tuple[str, dict[str, Level], bool]]:
        nonlocal best
        assert best is not None
        reached[0] = start
        for at in range(start + 1, len(case.levels)):
            levels = {**best, **take(names, at)}
            if levels != best:
                good = performs(levels)
                yield tier, levels, good
                if not good:
                    return
                best = levels
            reached[0] = at

    def sensitivity(name: str, at: int) -> float:
        level = str(case.levels[min(at, len(case.levels) - 1)])
        return next(c.delta_nll for c in case.table if (c.block, c.level) == (name, level))

    blocks = {b.name: [m.name for m in b.modules] for b in case.hierarchy.blocks if b.modules}
    depths, reached = dict.fromkeys(blocks, depth), [0]
    for name in sorted(blocks, key=lambda n: (sensitivity(n, depth + 1), n)):
        yield from descend(blocks[name], depth, "block")
        depths[name] = reached[0]
    for name in sorted(blocks, key=lambda n: (sensitivity(n, depths[n] + 1), n)):
        if name.startswith("attention"):
            for module in blocks[name]:
                yield from descend([module], depths[name], "module")


@settings(max_examples=150)
@given(case=cases)
def test_every_step_is_that_of_a_slow_reimplementation(case: Case) -> None:
    found = [(trial.tier, dict(trial.setting.levels), trial.performance_ok) for trial in run(case)]
    assert found == list(slow_search(case))


@settings(max_examples=60)
@given(case=cases)
def test_memory_is_never_a_reason_to_stop(case: Case) -> None:
    fits, never_fits = run(case), run(case, "too large")
    assert [trial.setting for trial in never_fits] == [trial.setting for trial in fits]
    assert not any(trial.feasible for trial in never_fits)


def rank(case: Case, module: str, setting: Setting) -> int:
    """How far down the list a module stands."""
    by_name = {m.name: m for m in case.hierarchy.modules}
    options = [case.space.level(by_name[module], level) for level in case.levels]
    return max(i for i, level in enumerate(options) if level == setting[module])


@settings(max_examples=60)
@given(case=cases)
def test_trials_lower_the_last_accepted_setting_and_nothing_else(case: Case) -> None:
    trials = run(case)
    accepted: Setting | None = None
    for trial in trials:
        if accepted is not None:
            changed = [n for n, level in trial.setting.levels if accepted[n] != level]
            assert all(rank(case, n, trial.setting) > rank(case, n, accepted) for n in changed)
            if trial.tier != "global":
                assert changed
                owners = {m.block for m in case.hierarchy.modules if m.name in changed}
                assert len(owners) == 1
            if trial.tier == "module":
                assert len(changed) == 1
                assert changed[0].startswith("blocks.")
        if trial.performance_ok:
            accepted = trial.setting
    assert len({t.setting for t in trials if t.tier != "global"}) == len(
        [t for t in trials if t.tier != "global"]
    )


@settings(max_examples=60)
@given(case=cases)
def test_the_global_tier_stops_at_the_first_violation(case: Case) -> None:
    globals_ = [t for t in run(case) if t.tier == "global"]
    assert [t.setting for t in globals_] == [
        case.space.setting(case.hierarchy, level) for level in case.levels[: len(globals_)]
    ]
    assert all(t.performance_ok for t in globals_[:-1])
    if len(globals_) < len(case.levels):
        assert not globals_[-1].performance_ok


def with_table(case: Case, order: list[str]) -> Case:
    """The same case with blocks as sensitive as their place in `order`."""
    table = tuple(
        Sensitivity(name, str(level), 0, 0, float(place), 1, 1, "measured")
        for place, name in enumerate(order)
        for level in case.levels
    )
    return Case(case.hierarchy, case.space, case.levels, case.ok, table)


@pytest.mark.parametrize(
    "order",
    [
        ["output", "attention.1", "input", "attention.0"],
        ["attention.0", "attention.1", "input", "output"],
    ],
)
def test_blocks_are_lowered_from_insensitive_to_sensitive(order: list[str]) -> None:
    case = with_table(make_case(2, "lm", "16 8g64 4g64", 1, 0.0, 0.0), order)
    tried = []
    for trial in run(case):
        if trial.tier == "block" and (name := trial.step.split()[0]) not in tried:
            tried.append(name)
    assert tried == order
    steps = [trial.step.split()[0] for trial in run(case) if trial.tier == "module"]
    blocks = list(dict.fromkeys(f"attention.{step.split('.')[1]}" for step in steps))
    assert blocks == [name for name in order if name.startswith("attention")]


def test_by_hand() -> None:
    """One block may go to 4 bits, another to 2, a third not at all; one module of the third may."""
    case = with_table(make_case(1, "lm", "8g64 4g64 2g64", 1, 0, 0), ["input", "attention.0", "output"])

    def ok(setting: Setting) -> bool:
        low = {name: level.bits for name, level in setting.levels}
        attention = [bits for name, bits in low.items() if name.startswith("blocks")]
        return low["emb"] >= 4 and low["head"] >= 2 and sum(bits < 8 for bits in attention) <= 1

    trials = run(Case(case.hierarchy, case.space, case.levels, ok, case.table))
    steps = [(t.tier, t.step, t.performance_ok) for t in trials]
    assert steps[:7] == [
        ("global", "all blocks at 8g64", True),
        ("global", "all blocks at 4g64", False),
        ("block", "input to 4g64", True),
        ("block", "input to 2g64", False),
        ("block", "attention.0 to 4g64", False),
        ("block", "output to 4g64", True),
        ("block", "output to 2g64", True),
    ]
    key, *others = (f"blocks.0.att.{n}" for n in ("key", "value", "receptance", "output"))
    assert steps[7:9] == [("module", f"{key} to 4g64", True), ("module", f"{key} to 2g64", True)]
    assert steps[9] == ("module", f"{others[0]} to 4g64", False)
    final = [t for t in trials if t.performance_ok][-1].setting
    assert {name: str(level) for name, level in final.levels if level.bits < 8} == {
        "emb": "4g64f",
        key: "2g64",
        "head": "2g64",
    }


def test_nothing_follows_when_the_lowest_level_performs_or_the_highest_does_not() -> None:
    tiers = [[t.tier for t in run(make_case(2, "lm", "8g64 4g64", 1, limit, 0.0))] for limit in (100.0, -1.0)]
    assert tiers == [["global", "global"], ["global"]]


def test_each_step_is_announced_before_it_is_judged() -> None:
    case = make_case(1, "lm", "16 8g64 4g64", 5, 0.5, 0.0)
    events: list[str] = []

    def judge(setting: Setting, tier: str, step: str) -> Trial:
        events.append(f"judged {tier}: {step}")
        return fake_trial(setting, tier, step, case.ok(setting))

    def announce(text: str) -> None:
        events.append(f"announced {text}")

    trials = TieredSearch(case.hierarchy, case.levels, case.space, judge, case.table, announce).run()
    expected = [f"{word} {t.tier}: {t.step}" for t in trials for word in ("announced", "judged")]
    assert events == expected
