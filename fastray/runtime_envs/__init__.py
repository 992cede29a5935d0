"""What a runtime_env needs besides variables: files on other nodes, installed packages, fresh interpreters.

Reading order:

    fields.py      checks of the fields that take more than a look
    packages.py    a directory as one file with a name by content, and back
    store.py       a directory of things made once, by whoever comes first, that a kill never leaves half done
    publish.py     the driver: makes packages of what its tasks name, where other nodes find them
    setup.py       the worker: from a runtime_env to paths, variables and an interpreter
    venv.py        pip and uv: a virtual environment over the packages of the node's own
    fresh.py       a worker that goes on as a new interpreter in the same process

fastray/transfer/packages.py brings packages from node to node. docs/internals/runtime_env.md has the reasons.
Imported when a runtime_env has such fields, never by `import fastray`.
"""
