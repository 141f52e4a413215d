"""What each key changes."""
