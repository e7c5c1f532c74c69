"""Every figure of the workbench: frames or a verdict in, plotly figures out, with caption, sentence and table."""

from workbench.figures_base import (
    FigureError,
    caption,
    enlarge,
    escape,
    notes_html,
    plotly_script,
    save_png,
    sentence,
    show,
    table,
    to_html,
    use_large_type,
    use_renderer,
)
from workbench.figures_curves import learning_curve
from workbench.figures_decision import decision_shares, sign_flips
from workbench.figures_influence import gains_by_signal, influences, sibling_gaps, two_signals
from workbench.figures_lesson import own_examples, style_path
from workbench.figures_probing import (
    decidedness,
    drafts_by_technique,
    pair_decidedness,
    preference_scores,
    probe_roc,
    technique_heatmap,
)
from workbench.figures_training import reward_margins, style_shift, training_curves
from workbench.figures_validity import probe_validity, score_and_gain
from workbench.figures_verdict import arm_accuracies, by_student, comparisons, per_task

__all__ = [
    "FigureError",
    "arm_accuracies",
    "by_student",
    "caption",
    "comparisons",
    "decidedness",
    "decision_shares",
    "drafts_by_technique",
    "enlarge",
    "escape",
    "gains_by_signal",
    "influences",
    "learning_curve",
    "notes_html",
    "own_examples",
    "pair_decidedness",
    "per_task",
    "plotly_script",
    "preference_scores",
    "probe_roc",
    "probe_validity",
    "reward_margins",
    "save_png",
    "score_and_gain",
    "sentence",
    "show",
    "sibling_gaps",
    "sign_flips",
    "style_path",
    "style_shift",
    "table",
    "technique_heatmap",
    "to_html",
    "training_curves",
    "two_signals",
    "use_large_type",
    "use_renderer",
]
