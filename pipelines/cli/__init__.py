"""What the stages share on the command line: arguments, printing, several processes, results as text."""
