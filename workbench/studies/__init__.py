"""What looks back at finished runs: did a signal tell the truth, does a pair hold, does a teacher flatter."""
