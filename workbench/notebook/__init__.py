"""What one sees and touches."""
