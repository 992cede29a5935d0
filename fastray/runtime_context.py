"""`get_runtime_context()`: who and where the caller is."""

from __future__ import annotations

from fastray import runtime as _runtime
from fastray._native import worker as _worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastray.actor import ActorHandle
    from fastray.runtime import Runtime


class RuntimeContext:
    """Ids and options of the running task, its worker, node and job (Ray's RuntimeContext)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def get_job_id(self) -> str:
        """8 hexadecimal digits."""
        return self._runtime.job_id()

    def get_node_id(self) -> str:
        """56 hexadecimal digits."""
        return self._runtime.node_id()

    def get_worker_id(self) -> str:
        """56 hexadecimal digits; the driver has one too."""
        return self._runtime.worker_id()

    def get_task_id(self) -> str | None:
        """32 hexadecimal digits of the running task; None in a driver."""
        task = _worker.current_task()
        if task is None:
            return None
        return f"{self._runtime.attachment.session_id:016x}{task[0]:016x}"

    def get_task_name(self) -> str | None:
        """Name of the running task's function; None in a driver."""
        return _worker.current_task_name() or None

    get_task_function_name = get_task_name

    def get_actor_id(self) -> str | None:
        """32 hexadecimal digits of the actor that runs here; None outside of actors."""
        if not self._is_actor():
            return None
        return self.current_actor._actor_id.hex()

    def get_actor_name(self) -> str | None:
        """The name of the actor that runs here, "" when it has none; None outside of actors."""
        if not self._is_actor():
            return None
        from fastray._native.actors import actor_state

        name: str = actor_state(self.current_actor._fastray_ref)[4]
        return name

    @property
    def current_actor(self) -> ActorHandle:
        """A handle of the actor that runs here. Raises RuntimeError outside of actors."""
        if not self._is_actor():
            raise RuntimeError("current_actor is for methods of actors: no actor runs in this process")
        from fastray.actor import handle_of_this_actor

        return handle_of_this_actor()

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """True when the actor that runs here was started again after its process died."""
        if not self._is_actor():
            raise RuntimeError("was_current_actor_reconstructed is for methods of actors")
        from fastray._native.actor_worker import restarts

        return bool(restarts() > 0)

    def _is_actor(self) -> bool:
        return bool(self._runtime.is_worker and self._runtime.attachment.is_actor())

    @property
    def namespace(self) -> str:
        return self._runtime.namespace

    def get_attempt_number(self) -> int:
        """How often the running task was started before."""
        task = _worker.current_task()
        return 0 if task is None else int(task[1])

    def is_canceled(self) -> bool:
        """True when the running task was asked to stop. Raises RuntimeError in a driver."""
        if _worker.current_task() is None:
            raise RuntimeError("is_canceled() is for tasks: no task runs here")
        return bool(_worker.current_task_cancelled())

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task was given, by resource."""
        return {
            name: amount / 10000 for name, amount in self._runtime.attachment.own_demand().items() if amount
        }

    def get_runtime_env_string(self) -> str:
        """The runtime_env of this worker as JSON."""
        import json

        return json.dumps(self.runtime_env)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime_env of this worker (or of the driver)."""
        environment = self._runtime.job_environment
        return {} if environment is None else environment.to_dict()

    def get_placement_group_id(self) -> str | None:
        """36 hexadecimal digits of the placement group that the task runs in; None outside of one."""
        from fastray.util.placement_group import get_current_placement_group

        group = get_current_placement_group()
        return None if group is None else group.id.hex()

    def get_node_labels(self) -> dict[str, str]:
        """Labels of the node."""
        return self._runtime.labels()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """True when the tasks and actors made here run in the same placement group, unless they say otherwise."""
        return self._runtime.captured_group is not None

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Indices of the accelerators given to the running task, by kind."""
        from fastray.api import get_gpu_ids

        return {"GPU": [str(i) for i in get_gpu_ids()]}

    def get(self) -> dict[str, Any]:
        """Job, node, task ids and namespace in one dictionary."""
        return {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "task_id": self.get_task_id(),
            "namespace": self.namespace,
        }


def get_runtime_context() -> RuntimeContext:
    """The context of the caller; starts a session when there is none, as Ray does."""
    _runtime.ensure_attached()
    return RuntimeContext(_runtime.current_runtime())
