"""The global control store: what a cluster knows about itself, in a process of its own.

Reading order:

    records.py            the rows of the tables
    commands.py           what a client may ask for, and what it gets back
    table.py              a table: rows, a version, the events of late, what has to be persisted
    *_table.py            one table a file: node, object, task, function, actor, job, placement group, key-value
    failure_detector.py   who is dead: a closed connection or silence, from times that it is told
    tables.py             all tables together: a batch of commands in, replies and changes out. Pure code
    store.py              where rows survive: memory, or SQLite (store_sqlite.py)
    commit.py             groups of changes to the store; nobody is answered before his group is durable
    publisher.py          events to subscribers
    auth.py, wire.py      tokens and TLS; names, versions and the codec of messages
    server.py             the gRPC service; __main__.py is its process
    standby.py            a second server, which takes over the moment the first one dies
    client.py             what daemons and drivers use; connection.py its channel, subscription.py its events
    process.py            starts a server as a child

Only this package imports grpc, msgspec and sqlite3. Nothing of it is imported by `import fastray`, nor by a
session of one node. docs/internals/gcs.md has the protocol and the guarantees.
"""
