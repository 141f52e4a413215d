"""Conversations as rows: read, checked and encoded."""
