"""Something to play with: simulated runs whose truth is known, and what the verdict says of them."""

from collections.abc import Callable

from traitlets import Float, HasTraits, Int

from workbench import figures
from workbench.notebook.display import is_headless
from workbench.report.plan import world_of
from workbench.report.summary import model_names
from workbench.runs.run import Run
from workbench.verdict.power import SHORT, ExperimentDesign, VarianceModel, calibrate, design_of

REPEATS = 300


class DecisionGame(HasTraits):
    """How often the primary comparison is decided each way, for a true difference and numbers of items and seeds.

    The state is all there is to it; `show` draws it, with sliders where somebody is watching.

    Args:
        world: How answers vary.
        design: The rule, and the numbers to begin with.
        models: How figures name the models.

    Example:
        game = DecisionGame.of_run(work)
        game.n_seeds = 10
        game.counts()
    """

    difference = Float(0.0, help="true difference in points")
    n_items = Int(100, min=2, help="items a task")
    n_seeds = Int(3, min=2, help="seeds")

    def __init__(self, world: VarianceModel, design: ExperimentDesign, models: str = "pocket models"):
        super().__init__(difference=200 * design.margin, n_items=max(design.n_items, 2), n_seeds=max(design.n_seeds, 2))
        self.world, self.models = world, models
        # The primary comparison alone: the others do not decide, and it is quick.
        self.design = design._replace(arms=(design.a, design.b), shots=design.shots[:1])

    @classmethod
    def of_run(cls, work: Run) -> "DecisionGame":
        """Return a game that begins with a run's own numbers, at the spread seen in it."""
        design = design_of(work.recipe)
        return cls(world_of(work.name, design), design, model_names(work))

    def __repr__(self) -> str:
        return f"DecisionGame: {self.facts()}"

    def facts(self) -> str:
        """Return the state in words."""
        return (
            f"True difference {self.difference:+g} points, {self.n_seeds} seeds, {self.n_items} items for each of "
            f"{len(self.design.tasks)} tasks"
        )

    def counts(self) -> dict[str, int]:
        """Return how many of the simulated runs are decided each way; the same state always gives the same."""
        design = self.design._replace(n_items=self.n_items, n_seeds=self.n_seeds)
        (row,) = calibrate(self.world, design, REPEATS, [self.difference / 100], n_checked=0).to_dict("records")
        return {said: round(row[short] * REPEATS) for said, short in SHORT.items()}

    def figure(self):
        """Return the figure of the present state."""
        return figures.decision_shares(self.counts(), self.facts(), self.models)

    def show(self) -> None:
        """Display the figure, which stays on the page after a restart, and sliders where somebody is watching."""
        figures.show(self.figure())
        if not is_headless():
            from IPython.display import display

            display(self.view(lambda: figures.show(self.figure())))

    def view(self, draw: Callable[[], None]):
        """Return sliders tied to the state; what draw displays is shown below them whenever the state changes."""
        import ipywidgets
        from traitlets import link

        look = {"continuous_update": False, "style": {"description_width": "11em"}, "layout": {"width": "34em"}}
        sliders = {
            "difference": ipywidgets.FloatSlider(
                min=-20, max=20, step=1, description="true difference (points)", **look
            ),
            "n_items": ipywidgets.IntSlider(
                min=10, max=max(1000, self.n_items), step=10, description="items a task", **look
            ),
            "n_seeds": ipywidgets.IntSlider(min=2, max=max(12, self.n_seeds), description="seeds", **look),
        }
        for name, slider in sliders.items():
            link((self, name), (slider, "value"))
        below = ipywidgets.Output()

        def redraw(_) -> None:
            below.clear_output(wait=True)
            # What goes wrong in here is shown below the sliders too.
            with below:
                draw()

        self.observe(redraw, list(sliders))
        return ipywidgets.VBox([*sliders.values(), below])
