"""The four things that can be wrong: what was asked for, a run, a model, or data. Each message says what to do."""


class RecipeError(ValueError):
    """What was asked for cannot be: a recipe, a parameter, an option; one line per fault."""


class RunError(RuntimeError):
    """A run, its files, a job or a notebook of it: missing, damaged, in the way, stopped, or not to be written."""


class ModelError(ValueError):
    """A model, its engine or its training: not there, not usable, or at the end of what may be spent."""


class DataError(ValueError):
    """Tasks, frames, predictions or what a figure is drawn from: missing, or not as they must be."""
