"""Faults made on purpose: processes killed for real (`fastray killmatrix`).

    kill_matrix.py    the command: runs each row in a program of its own, prints the table
    kill_rows.py      the rows: which process is killed at which moment, and what has to come out
    kill_program.py   such a program
    kill_tasks.py     what its workers run
"""

from __future__ import annotations
