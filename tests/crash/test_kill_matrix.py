"""`fastray killmatrix`: in every row everything recovers, results are right and nothing is left over.

`FASTRAY_CRASH_RUNS` is the number of kills in each row, `FASTRAY_CRASH_SEED` replays what is drawn.
"""

from __future__ import annotations

import os

import pytest
from crash_helpers import SEED

from fastray.sim import kill_matrix
from fastray.sim.kill_rows import ROWS

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

RUNS = int(os.environ.get("FASTRAY_CRASH_RUNS", "2"))


@pytest.mark.parametrize("name", list(ROWS))
def test_everything_recovers_and_nothing_is_left(name):
    outcome = kill_matrix.run_row(ROWS[name], RUNS, str(SEED))
    assert outcome.errors == []
    assert (outcome.recovered, outcome.right, outcome.left) == (RUNS, RUNS, [])


def test_the_command_writes_a_row_for_each_kind_of_kill(tmp_path, capsys):
    table = tmp_path / "table.md"
    assert kill_matrix.main(["--runs", "1", "--only", "worker: asleep", "--out", str(table)]) == 0
    head, _, row = table.read_text().splitlines()
    assert len(head.split("|")) == len(row.split("|"))
    assert row.startswith("| worker | asleep, without work | 1 | 1 | 1 |")
    assert capsys.readouterr().out == table.read_text()


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--only", "no such row"], ["--runs", "x"]])
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        kill_matrix.main(arguments)
    assert arguments[0] in capsys.readouterr().err
