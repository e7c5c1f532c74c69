"""What is left to read when nobody watches."""
