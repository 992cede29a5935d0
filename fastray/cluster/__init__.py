"""What makes a node a part of a cluster: the processes beside a daemon's node, and what is known of other nodes.

Reading order:

    supervisor.py    in the daemon: starts the store's servers and the agent, starts them again, ends them
    child.py         the first steps of such a process
    agent.py         the agent: joins the node to the cluster, sends heartbeats, knows the other nodes
    load.py          what a heartbeat says: free resources, queues; as differences
    jobs.py          jobs of the node in the cluster's table, and their numbers
    inquiry.py       a socket where processes of this machine ask the agent what it knows
    members.py       the answers, as rows for `nodes()`, `fastray status`, `cluster_utils`
    launch.py        finding a cluster and its token before a node is started

Only the agent imports gRPC. A session that `init()` alone starts imports nothing of this package. The protocol and
what a death leaves are in docs/internals/cluster.md.
"""
