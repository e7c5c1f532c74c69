"""What a run shows, and how far to trust it."""

from workbench.runs import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "evaluation": "SealedTests answer_tests decide verdict_of",
        "verdict": "paired",
        "intervals": "auc",
    },
)


def __dir__() -> list[str]:
    return __all__
