"""What a training run will do and take, known before it starts: steps, memory, and whether that is there."""
