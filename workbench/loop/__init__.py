"""The steps of the loop, one file a step."""

from workbench.runs import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "writing": "Guards OnePrompt",
        "instructions": "FewShotPrompts",
        "drafting": "draft_questions draft_rationales work_exemplars",
        "preference_set": "choose_preference_set responders_of",
        "pairs": "build_pairs flip_half",
        "reviews": "apply_reviews reviews_in_force",
        "arms": "pairs_by_arm",
        "alignment": "align_teachers",
        "tailoring": "write_examples",
        "budgets": "equal_rows equal_tokens train_students",
    },
)
