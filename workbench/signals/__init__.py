"""What a student says of a draft, one file a signal."""
