"""Every figure of the workbench: frames or a verdict in, plotly figures out, with caption, sentence and table."""

from workbench.runs import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "scores": "drafts_by_technique preference_scores technique_heatmap probe_roc pair_decidedness influences",
        "training": "reward_margins training_curves by_round style_shift",
        "verdict": "arm_accuracies comparisons per_task by_student sign_flips decision_shares",
        "studies": "estimates truth_and_cost score_and_gain learning_curve",
        "style": "escape caption sentence table show to_html notes_html save_png plotly_script "
        "use_renderer use_large_type",
    },
)
