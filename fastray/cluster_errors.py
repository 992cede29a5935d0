"""What can go wrong between the processes of a cluster. Users import these from fastray.exceptions."""

from __future__ import annotations

from fastray.task_error import FastrayError


class GcsUnavailableError(FastrayError):
    """The global control store did not answer within the client's window; nobody restarted it in time.

    Whatever was acknowledged before is safe in its store. Start the head again on the same store, then attach
    again. `address` is where it was, `waited_s` how long this client tried.
    """

    def __init__(
        self, message: str | None = None, *, address: str | None = None, waited_s: float | None = None
    ) -> None:
        self.address = address
        self.waited_s = waited_s
        waited = f" for {waited_s:.1f} s" if waited_s is not None else ""
        super().__init__(
            message
            or f"The global control store at {address} could not be reached{waited}. Is the head running? "
            "Start it again on the same store; what it acknowledged is kept."
        )


class GcsRequestError(FastrayError, ValueError):
    """The global control store refused a request.

    `kind` is "missing", "exists", "stale", "invalid" or "internal".
    """

    def __init__(self, message: str, kind: str = "invalid") -> None:
        self.kind = kind
        super().__init__(message)


class NodeFencedError(GcsRequestError):
    """This node was declared dead: its epoch is over, and its results are refused. It must start anew."""

    def __init__(self, message: str, kind: str = "stale") -> None:
        super().__init__(message, kind)


class VersionMismatchError(FastrayError):
    """A process with another wire version or another minor version of Python than the cluster's.

    Tasks travel as pickles and code objects, which another minor version of Python cannot read.
    """
