"""What a student says of a draft, one file a signal."""

from workbench.runs import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "one_shot": "probe_drafts",
        "scores": "as_signal share_right",
        "by_name": "measure_signals named_in",
        "difficulty": "measure_difficulty",
        "judging": "answer_questions judge_of require_steady steer_judge",
        "reference": "build_reference",
        "warm_up": "load_warmed texts_of",
        "influence_of_drafts": "measure_influence influence_of_examples texts_to_learn",
    },
)
