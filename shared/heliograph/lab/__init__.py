"""[IO] Brokers, processes and bad roads on one machine, for tests, the demonstration and `heliograph lab`.

`spawn` starts a program in a process group of its own with its output in a file; `Road` is a shaped link between a node
and the hub's broker, `Proxy` a TCP road with a rate, a delay and cuts; `Realm` is a hub and nodes as processes. Nothing
here is for production.
"""

from heliograph.lab.processes import (
    IOTCORE_PROGRAM,
    POLL_S,
    Running,
    find_mosquitto,
    free_port,
    is_listening,
    spawn,
    start_iotcore,
    start_mosquitto,
    wait_until,
)
from heliograph.lab.profiles import load_profile, profile_names
from heliograph.lab.proxy import Proxy
from heliograph.lab.realm import Realm, infer, infer_with_numbers
from heliograph.lab.road import Road

__all__ = [
    "IOTCORE_PROGRAM",
    "POLL_S",
    "Proxy",
    "Realm",
    "Road",
    "Running",
    "find_mosquitto",
    "free_port",
    "infer",
    "infer_with_numbers",
    "is_listening",
    "load_profile",
    "profile_names",
    "spawn",
    "start_iotcore",
    "start_mosquitto",
    "wait_until",
]
