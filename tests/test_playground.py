"""The decision to play with: a state that works without a view, sliders tied to it, static output headless."""

import pytest
from traitlets import TraitError

from workbench import figures
from workbench.notebook import playground
from workbench.notebook.playground import REPEATS, DecisionGame
from workbench.verdict.intervals import BETTER, UNDECIDED
from workbench.verdict.power import ASSUMED, ExperimentDesign

DESIGN = ExperimentDesign(
    "tailored", "untailored", ("base", "untailored", "tailored"), (0, 3), ("t",), 3, 60, 0.05, 0.05
)


def test_the_state_decides_what_comes_out():
    game = DecisionGame(ASSUMED, DESIGN)
    assert game.difference == 10 and (game.n_items, game.n_seeds) == (60, 3)
    few = game.counts()
    assert sum(few.values()) == REPEATS and game.counts() == few
    game.n_seeds, game.n_items, game.difference = 10, 300, 15.0
    many = game.counts()
    assert many[BETTER] > 0.95 * REPEATS and few[UNDECIDED] > many[UNDECIDED]
    assert "True difference +15 points, 10 seeds, 300 items" in figures.sentence(game.figure())
    with pytest.raises(TraitError):
        game.n_seeds = 1


def test_sliders_and_state_are_one_thing():
    game, drawn = DecisionGame(ASSUMED, DESIGN), []
    difference, items, seeds, below = game.view(lambda: drawn.append(game.facts())).children
    assert (difference.value, items.value, seeds.value) == (10, 60, 3) and not drawn
    items.value = 200
    assert game.n_items == 200 and drawn == [game.facts()]
    game.n_seeds = 7
    assert seeds.value == 7 and len(drawn) == 2


def test_headless_it_is_a_figure_and_nothing_to_move(monkeypatch):
    shown = []
    monkeypatch.setattr(playground.figures, "show", shown.append)
    game = DecisionGame(ASSUMED, DESIGN)
    monkeypatch.setattr(game, "view", None)
    game.show()
    assert len(shown) == 1 and "True difference +10 points" in figures.sentence(shown[0])
