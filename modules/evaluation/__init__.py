"""What a model is worth: tasks and their metrics, statistics, baselines, promotion; verse/ and report/."""
