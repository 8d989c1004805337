"""Which precision levels a search may use: those of the board, those that a user wrote, those of the paper.

A level is offered only where the profile's runtime runs it, and as that runtime runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qslm_edge.errors import UsageError
from qslm_edge.profiles import Profile
from qslm_edge.quantize.levels import FLOAT16, FLOAT32, MIDRISE_BITS, Level, parse_level
from qslm_edge.quantize.simulated import PAPER_LEVELS
from qslm_edge.recipe import Recipe
from qslm_edge.search.space import check_levels
from qslm_edge.steps.cuts import refuse_cut_levels

__all__ = ["GROUP_SIZE", "allowed_level", "default_levels", "listed_levels", "wanted_levels"]

GROUP_SIZE = 64
FINE_LEVELS = {4: (32, 64, 128)}
"""Group sizes searched by default at a width, others use GROUP_SIZE; at 4 bits they trade bytes for quality."""
CUT_LEVELS = {4: (32, 64, 128), 2: (64, 128)}
"""The same where hidden units are cut: limits that allow that are those under which two bits count."""
TUNED_LEVELS = {4: (128,), 2: (64, 128)}
"""The same where weights are tuned, which makes up for larger groups."""


def wanted_levels(recipe: Recipe, profile: Profile) -> tuple[Level, ...]:
    """Levels of a recipe's search, largest first.

    Raises:
        UsageError: not a level, or one that the profile's runtime does not run.
    """
    if recipe.method == "qslm":
        return _paper_levels(recipe)
    if recipe.levels is None:
        return default_levels(profile, recipe.group_size, recipe.tune, recipe.cut_hidden is not None)
    levels = listed_levels(recipe.levels, profile, recipe.group_size)
    refuse_cut_levels(levels)
    return levels


def default_levels(
    profile: Profile, group_size: int | None = None, tuned: bool = False, cut: bool = False
) -> tuple[Level, ...]:
    """Precision levels of a profile: fp16 storage and every packed width that its stock runtime runs.

    Two bits are mid-rise: smaller and nearer than with zero points (docs/recipe.md).

    Args:
        profile: the board.
        group_size: of every packed level; None takes what serves.
        tuned: weights will be tuned.
        cut: hidden units may be cut.

    Raises:
        UsageError: a group size that the runtime does not run at some width.
    """
    fine = TUNED_LEVELS if tuned else CUT_LEVELS if cut else FINE_LEVELS
    levels: list[Level] = []
    for width in profile.usable_widths():
        if width.bits == 32:
            levels.append(FLOAT32)
        elif width.bits == 16:
            levels.append(FLOAT16)
        else:
            if group_size is not None and group_size not in width.block_sizes:
                raise UsageError(
                    f"group size not run by the profile's runtime at {width.bits} bits",
                    where="--group-size",
                    found=group_size,
                    allowed=", ".join(str(size) for size in width.block_sizes),
                )
            wanted = (group_size,) if group_size else fine.get(width.bits, (GROUP_SIZE,))
            sizes = [size for size in wanted if size in width.block_sizes] or [min(width.block_sizes)]
            midrise = width.bits == MIDRISE_BITS
            levels += [Level(width.bits, size, width.accuracy_level or 0, midrise=midrise) for size in sizes]
    # float32 is the baseline itself: it needs no evaluation unless nothing else is there
    kept = [level for level in levels if level != FLOAT32] or levels
    return check_levels(kept)


def listed_levels(
    texts: Iterable[str], profile: Profile | None, group_size: int | None = None
) -> tuple[Level, ...]:
    """Levels that a user wrote, largest first.

    Args:
        texts: such as 16, 8, 4g128; a bare packed width takes the group size.
        profile: refuses what its runtime does not run; None allows every level.
        group_size: of bare widths; None takes 64.

    Raises:
        UsageError: not a level, or one that the profile's runtime does not run.
    """
    levels: list[Level] = []
    for text in texts:
        bare = text.strip() in ("8", "4", "2")
        level = parse_level(f"{text.strip()}g{group_size or GROUP_SIZE}" if bare else text, "--levels")
        if level.simulated or level.bits == 1:
            raise UsageError(
                "not a level to search",
                where="--levels",
                found=text,
                allowed="32, 16, 8, 4, 2, or e.g. 4g128",
            )
        levels.append(level if profile is None else allowed_level(level, profile, f"--levels {text}"))
    return check_levels(levels)


def allowed_level(level: Level, profile: Profile, where: str) -> Level:
    """The level as the profile's runtime runs it.

    Args:
        level: as the user wrote it.
        profile: the board.
        where: flag or file key, for the message.

    Raises:
        UsageError: a width, group size or accuracy level that the runtime does not run.
    """
    width = profile.width(level.bits)
    if not level.is_packed:
        return level
    if level.group_size not in width.block_sizes:
        raise UsageError(
            "group size not run by the profile's runtime",
            where=where,
            found=level.group_size,
            allowed=", ".join(str(size) for size in width.block_sizes),
        )
    if level.accuracy_level == 0:  # written with the suffix f
        if level.bits != 4 and width.accuracy_level:
            raise UsageError(
                "float activations at this width fall off the fast path", where=where, allowed="4-bit levels"
            )
        return level
    return replace(level, accuracy_level=width.accuracy_level or 0)


def _paper_levels(recipe: Recipe) -> tuple[Level, ...]:
    if recipe.levels is None:
        return tuple(Level(bits, simulated=True) for bits in PAPER_LEVELS)
    bits = []
    for text in recipe.levels:
        if not text.strip().isdecimal() or not 2 <= int(text) <= 16:
            raise UsageError(
                "not a simulated width", where="--levels", found=text, allowed="2 to 16 with --method qslm"
            )
        bits.append(int(text))
    return tuple(Level(b, simulated=True) for b in sorted(set(bits), reverse=True))
