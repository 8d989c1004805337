"""An error is one line, whatever the names in a hostile file hold."""

from __future__ import annotations

from qslm_edge.errors import CheckpointError


def test_the_line_holds_every_part_in_order() -> None:
    error = CheckpointError("wrong shape", where="a.pth", found=[1], allowed=[2], hint="save it again")
    assert str(error) == "a.pth: wrong shape; found [1]; allowed: [2]. Save it again"


def test_line_breaks_and_control_characters_never_reach_the_terminal() -> None:
    line = CheckpointError("unknown tensors", found="a\x1b[31m\nb\r\x07c").line()
    assert line == "unknown tensors; found a?[31m b ?c"
    assert line.isprintable()
