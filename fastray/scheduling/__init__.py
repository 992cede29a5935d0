"""Where a task, an actor or a placement group goes, among several nodes. Pure: no clock, no I/O, no global.

Reading order:

    resources.py           amounts in whole units, what fits, what is missing
    labels.py              conditions on a node's labels
    view.py                a node as the scheduler sees it, a request, the outcomes
    policy.py              one request: by resources, estimated wait and bytes to move
    bundles.py             a placement group
    global_scheduler.py    what is known of all nodes, and what was placed since they last said so

The same code decides in the daemon, in the global scheduler, and in a simulator. Nothing here is imported by a
session of one node.
"""
