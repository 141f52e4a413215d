"""Python imports this at its start where the folder is on its path: the ranks of a job write down what they do."""

import os
from pathlib import Path

if "RANK" in os.environ:
    from tests.workflow.faults.runs import take_notes

    take_notes(Path(f"account-{os.environ['RANK']}.jsonl"))
