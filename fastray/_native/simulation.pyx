"""The simulated node (csrc/sim_*): one seed, or many without the GIL.

Called by fastray.sim.
"""

from libc.stdint cimport uint32_t, uint64_t
from libcpp.string cimport string

from fastray._native.cpp cimport SimLimits, SimOutcome, run_node

ALL = 0xFFFFFFFF


cdef SimLimits limits_of(uint32_t faults_max, uint32_t tasks_max, uint32_t actors_max, bint trace):
    cdef SimLimits limits
    limits.faults_max = faults_max
    limits.tasks_max = tasks_max
    limits.actors_max = actors_max
    limits.trace = trace
    return limits


def run_seed(uint64_t seed, uint32_t faults_max=ALL, uint32_t tasks_max=ALL, uint32_t actors_max=ALL, bint trace=False):
    """One run: a dict with "violation" (empty: none), "trace", "digest" and counts."""
    cdef SimLimits limits = limits_of(faults_max, tasks_max, actors_max, trace)
    cdef SimOutcome o
    with nogil:
        o = run_node(seed, limits)
    return {
        "violation": o.violation.decode(errors="replace"), "trace": o.trace.decode(errors="replace"), "digest": o.digest,
        "events": o.events, "decisions": o.decisions, "tasks": o.tasks, "calls": o.calls, "forks": o.forks,
        "deaths": o.deaths, "restarts": o.restarts, "faults": o.faults, "virtual_ns": o.virtual_ns,
    }


def sweep(uint64_t first, uint64_t count):
    """Runs `count` seeds from `first` on, up to the first that fails: (its seed or None, runs made, totals by name)."""
    cdef SimLimits limits = limits_of(ALL, ALL, ALL, False)
    cdef SimOutcome o
    cdef uint64_t seed = first, done = 0
    cdef uint64_t events = 0, decisions = 0, tasks = 0, calls = 0, deaths = 0, restarts = 0
    cdef bint failed = False
    with nogil:
        while done < count and not failed:
            o = run_node(seed, limits)
            failed = not o.violation.empty()
            done += 1
            events += o.events
            decisions += o.decisions
            tasks += o.tasks
            calls += o.calls
            deaths += o.deaths
            restarts += o.restarts
            if not failed:
                seed += 1
    totals = {"events": events, "decisions": decisions, "tasks": tasks, "calls": calls, "deaths": deaths,
              "restarts": restarts}
    return (seed if failed else None), done, totals
