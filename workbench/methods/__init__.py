"""One file a method: how its students are asked about drafts."""
