"""Devices of a Ray cluster, shared by many: found, leased, watched, and their measurements kept.

`farm` is the handle that users hold, `config` is farm.yaml. `dispatcher` leases devices to `jobs`;
`failing` finds whose fault a failure is and does what `FailurePolicy` decides; `roster` takes
devices into service and out of it; `pool` has a device's state and says which devices are alike;
`drift` runs the control and judges whether a device is as fast as it was; `lease` calls the
devices' processes, `device_actor` is such a process, `process` says whether one is gone. `patience`
is how long a process may take to start, `autoscaler` whether a node will come for it, `joining` why
a cluster cannot be joined. `host_watch` asks the `host_actor` of each node for devices; `metrics`
are for Prometheus.
"""
