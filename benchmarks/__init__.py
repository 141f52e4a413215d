"""moyun beside other tools: who is measured (subjects.py, peer_*.py), how (measuring.py, worker.py), on what (work.py),
against which limits of the hardware (machine.py), and what comes of it (tables.py, picture.py, scaling.py).

moyun's own turns are in moyun_turns.py, as they run its commands.
"""
