"""What can be done about failures: lost results come back, failed tasks run again, logs outlive a session.

    lineage.py         lineage as a pure graph: which tasks have to run again for a result, and what is missing
    durable.py         `init(durable=PATH)`: the path with the logs of earlier sessions, its lock and header
    cache.py           `@remote(cache=True)`: results by content, across programs
    code_digest.py     what a function is, as 16 bytes that are the same in every run of a program
    capture.py         a task's lineage (function, arguments, environment, seed; an actor's state and log)
    replay.py          runs a captured task in this process
    failures.py        failed tasks on disk, for replay after the session
    replay_command.py  `fastray replay`; commands.py: `fastray durable`

The paper's section 4.2.3. What happens at a death is in csrc/reaper.h; the node core recovers lost results by
itself (csrc/process_lineage.cpp). Across sessions a task's identity is its content (function, arguments), not its
place in a program's run, so a program that is started again finds what it has finished before, in whatever order it
asks (docs/internals/durable.md; the work at run time is csrc/durable.h).
"""
