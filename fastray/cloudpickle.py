"""The cloudpickle package under the name by which Ray programs reach it (`ray.cloudpickle`)."""

from cloudpickle import *  # noqa: F403
from cloudpickle import (  # noqa: F401
    CloudPickler,
    dump,
    dumps,
    load,
    loads,
    register_pickle_by_value,
    unregister_pickle_by_value,
)
