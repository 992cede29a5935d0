"""A state machine of the store and what happens to it, for tests: who says what, and what must come back."""

from __future__ import annotations

from fastray.gcs import commands, records
from fastray.gcs.commands import Batch, Done, Failure
from fastray.gcs.table import Changes, Context, encode
from fastray.gcs.tables import GlobalState


class World:
    """A state with a clock that moves by hand, and all changes since the last look."""

    def __init__(self) -> None:
        self.state = GlobalState()
        self.rows: dict[tuple[str, bytes], bytes] = {}  # as a store has them
        self.now = 1000.0
        self.last = Changes()
        self._persist(self.state.begin())

    def say(self, command: commands.Command, client: bytes = b"c"):
        """The value of a command that is done; the Failure of one that is refused."""
        self.last = Changes()
        result = self.state.apply(command, Context(client, self.now), self.last)
        self._persist(self.last)
        assert self.state.is_valid()
        return result.value if isinstance(result, Done) else result

    def batch(self, seq: int, *given: commands.Command, client: bytes = b"c") -> bytes:
        reply, self.last = self.state.apply_batch(Batch(client, seq, list(given)), self.now)
        self._persist(self.last)
        return reply

    def gone(self, client: bytes, reason: str = "gone") -> Changes:
        self.last = self.state.client_gone(client, reason, self.now)
        self._persist(self.last)
        assert self.state.is_valid()
        return self.last

    def _persist(self, changes: Changes) -> None:
        for at, row in changes.rows.items():
            if row is None:
                self.rows.pop(at, None)
            else:
                self.rows[at] = encode(row)

    def restart(self) -> None:
        """A new server on what was persisted."""
        self.state = GlobalState()
        for (table, key), value in self.rows.items():
            self.state.restore(table, key, value)
        self._persist(self.state.begin())
        assert self.state.is_valid()

    def contents(self) -> dict[str, dict[bytes, bytes]]:
        """Every persistent row, by table, as the state has it."""
        return {
            name: {key: encode(row) for key, row in table.rows.items()}
            for name, table in self.state.tables.items()
            if table.persistent
        }

    def join(self, node_id: bytes = b"n1", client: bytes = b"d1", **resources: float) -> int:
        node = records.Node(node_id, "h:1", resources or {"CPU": 2.0})
        epoch = self.say(commands.NodeRegister(node), client)
        assert isinstance(epoch, int)
        return epoch


def kind(result) -> str:
    """The kind of a Failure, "" for anything else."""
    return result.kind if isinstance(result, Failure) else ""
