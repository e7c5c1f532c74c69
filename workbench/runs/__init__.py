"""A run: what it is asked, and what it remembers."""
