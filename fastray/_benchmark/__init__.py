"""What `fastray microbenchmark` and `benchmarks/` share: the work (`work.py`) and the peers (`peers.py`)."""
