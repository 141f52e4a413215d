"""Text ↔ token ids, what a prompt looks like, and text from ids one by one."""
