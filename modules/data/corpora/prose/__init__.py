"""Users' clones of public repositories to rows: classical Chinese with its translation, and modern prose."""
