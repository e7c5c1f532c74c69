"""Killed and begun again, at boundaries and at random instants; tests/kills.py does it as often as one likes."""

import pytest
from kills import kill_often
from small_classroom import build, recipe_of


@pytest.mark.slow
def test_killed_at_many_instants_nothing_is_lost_and_nothing_doubled(tmp_path):
    build(tmp_path)
    counts = kill_often(tmp_path, recipe_of(tmp_path), 6, seed=1)
    assert sum(n for how, n in counts.items() if how.startswith("at ")) == 6
    assert [counts[one] for one in ("lost", "doubled", "failed", "left")] == [0] * 4
