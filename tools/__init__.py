"""What maintainers run: pages of docs/ that are made from the code, locks, notebooks, pictures."""
