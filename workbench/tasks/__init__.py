"""What is asked, and how answers are read."""
