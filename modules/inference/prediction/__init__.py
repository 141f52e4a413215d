"""Answers to any number of rows: windows of them, the journal of what is answered, files in and out."""
