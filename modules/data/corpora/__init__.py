"""Public data to data folders that training reads: classical poems, and the rows of other tasks."""
