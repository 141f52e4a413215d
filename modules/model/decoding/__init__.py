"""What `sampling` decodes with: the choice of the next token, and captured steps on a GPU."""
