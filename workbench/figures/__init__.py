"""Every figure of the workbench: frames or a verdict in, plotly figures out, with caption, sentence and table."""

import importlib

_WHERE = {
    "scores": "drafts_by_technique preference_scores technique_heatmap probe_roc pair_decidedness decidedness "
    "influences sibling_gaps signal_agreement gains_by_signal",
    "training": "reward_margins training_curves style_shift",
    "verdict": "arm_accuracies comparisons per_task by_student sign_flips decision_shares",
    "studies": "estimates probe_validity score_and_gain learning_curve",
    "style": "FigureError escape caption sentence table show to_html notes_html save_png plotly_script use_renderer "
    "use_theme use_large_type",
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"workbench.figures has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"workbench.figures.{_MODULE_OF[name]}"), name)
