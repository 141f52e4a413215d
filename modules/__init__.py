"""What things are: no argument parsing, no printing."""
