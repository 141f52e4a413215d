"""What preference tuning, and judging answers for it, can be told."""
