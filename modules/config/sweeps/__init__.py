"""What a sweep can be told: its keys, and the values that it tries."""
