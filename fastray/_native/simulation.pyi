from typing import Any

ALL: int

def run_seed(
    seed: int, faults_max: int = ..., tasks_max: int = ..., actors_max: int = ..., trace: bool = False
) -> dict[str, Any]: ...
def sweep(first: int, count: int) -> tuple[int | None, int, dict[str, int]]: ...
