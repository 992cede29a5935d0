# cython: language_level=3, freethreading_compatible=False
"""The node's loop, for Python: `run` works until something has to be done that only Python can do.

fastray/node.py calls it again and again; the loop itself is csrc/local_scheduler.cpp. What run() returned
(FORK, PRELOAD, READABLE or EXIT) is described by the properties until the next run().
"""
from libcpp.string cimport string

from fastray._native.cpp cimport LocalScheduler as CLocalScheduler
from fastray._native.cpp cimport PR_SET_CHILD_SUBREAPER, PR_SET_NAME, PR_SET_PDEATHSIG, prctl

FORK = 1
PRELOAD = 2
EXIT = 3
READABLE = 4


def name_process(bytes name):
    """What ps and top call this process."""
    prctl(PR_SET_NAME, <const char*>name)


def adopt_orphans():
    """Grandchildren whose parent dies become children of this process."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(int signal):
    """The kernel sends this process `signal` when its parent dies."""
    prctl(PR_SET_PDEATHSIG, signal)


cdef class LocalScheduler:
    def __cinit__(self, int segment_fd, int bell_fd, int driver_fd, int log_fd, int listen_fd=-1, bint numbered=False):
        import sys
        cdef SchedulerFds* fds = &self.fds
        fds.segment = segment_fd
        fds.bell = bell_fd
        fds.driver = driver_fd
        fds.log = log_fd
        fds.listen = listen_fd
        fds.python = sys.version_info[0] << 8 | sys.version_info[1]
        fds.numbered = numbered
        self.loop = new CLocalScheduler()
        cdef string problem = self.loop.start(self.fds)
        if problem.size() != 0:
            raise OSError(problem.decode("utf-8", "replace"))

    def run(self):
        """Runs the node; returns FORK, PRELOAD, READABLE or EXIT."""
        with nogil:
            self.request = self.loop.run()
        return self.request.kind

    @property
    def slot(self):
        """Of a FORK: the slot of the new worker."""
        return self.request.slot

    @property
    def child_fds(self):
        """Of a FORK: the child's stdout, stderr and control socket."""
        return self.request.stdout_fd, self.request.stderr_fd, self.request.control_fd

    @property
    def node_fds(self):
        """The segment and the bell."""
        return self.fds.segment, self.fds.bell

    @property
    def for_actor(self):
        """Of a FORK: the worker is an actor's."""
        return self.request.actor

    @property
    def crashed(self):
        """Of a FORK: handles of tasks whose failure the worker writes down before it works."""
        return self.request.crashed

    @property
    def modules(self):
        """Of a PRELOAD: the modules to import."""
        return self.request.text.decode().split("\n")

    def runtime_env(self):
        """Of a FORK: the pickled runtime_env of the new worker; b"" for none."""
        cdef string blob = self.loop.runtime_env(self.request.env)
        return <bytes>blob

    def forked(self, int pid):
        """In the parent: the child's pid, or -1 when fork failed."""
        self.loop.forked(self.request, pid)

    def become_child(self):
        """In the child: forgets the node and closes what is its own."""
        self.loop.become_child(self.request)

    @property
    def readable(self):
        """Of a READABLE: the watched descriptor."""
        return self.request.readable

    def watch(self, int fd):
        """READABLE comes for `fd`, whenever it is, until `unwatch`."""
        if not self.loop.watch_for_python(fd):
            raise OSError(f"cannot watch descriptor {fd}")

    def unwatch(self, int fd):
        """To be called before `fd` is closed."""
        self.loop.unwatch(fd)

    def spare(self, int pid):
        """The child `pid` is not killed when the node ends: its end is the caller's."""
        self.loop.spare(pid)

    def end(self):
        """The node is to leave: the next `run` kills what it started and returns EXIT."""
        self.loop.end()

    def set_ready(self):
        """Tells drivers that the node runs."""
        self.loop.set_ready()

    def preload_later(self, list modules):
        """Import these, by a PRELOAD, when there is nothing else to do."""
        if modules:
            self.loop.preload_later("\n".join(modules).encode())
