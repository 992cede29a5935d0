"""Names of the questions that processes of a node ask its agent about actors (cluster/inquiry.py): see names.py."""

FIND = "find_actor"  # [namespace, name] -> handle of a creation record on this node, 0
RESERVE = "reserve_actor"  # the fields of a row of the store's table -> whether the name is the actor's
NAMES = "actor_names"  # anything -> [[namespace, name]]
