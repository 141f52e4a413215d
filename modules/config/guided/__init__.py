"""JSON schemas and regular expressions that a text can be held to, by way of llguidance."""
