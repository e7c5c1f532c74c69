"""What a run shows, and how far to trust it."""

from workbench.runs import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "evaluation": "SealedTests answer_tests decide",
        "verdict": "paired verdict_of",
        "intervals": "auc difference_within_tasks",
        "win_rates": "judged raw_and_controlled write_alpaca_eval write_mt_bench",
    },
)
