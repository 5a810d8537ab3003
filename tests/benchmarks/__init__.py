"""How fast kodo is, against the least that does the work, measured side by side in the same minutes.

`python -m tests.benchmarks` prints the table; `python -m tests.benchmarks pair A B` compares two commits.

- A `Row` (`row.py`) is one line of the table: the work, a floor, kodo, and a target. All of them stand in `rows.py`; to
  add one, write how a side begins (a context manager that gives a function, one call of which is one round) and put a
  `Row` into `ROWS`.
- Rounds of floor and kodo take turns, so that a noisy minute of the machine hits both, and the verdict is about their
  ratios within a round.
- This process imports nothing of kodo. What does (`subjects.py`, and the services) runs in processes of its own, from
  the tree that the `Bench` names, so that two commits can be measured by one program.
- `data.py` makes the flows, the same ones for the same seed; `floors.py` holds the services that do the least,
  `load.py` the clients, which are not what limits a figure; `services.py` starts and ends processes.
"""
