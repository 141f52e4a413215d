"""Tasks: their rows, how a model is asked, what it answers, and what the answers are worth."""
