"""Four ways to keep track while reasoning about a pocket task; data/pocket/make/rationales.py writes in them."""

STYLES = ("tally", "meter", "story", "diary")
LEADS = {"tally": "Tally:", "meter": "Meter:", "story": "Story:", "diary": "Diary:"}


def style_of(rationale: str) -> str:
    """Return the style a rationale opens in, or "" when it opens in none."""
    return next((style for style, lead in LEADS.items() if rationale.strip().startswith(lead)), "")
