"""What `clusterft doctor` runs on nodes, in the run's own image: how a run begins, and with --deep much more.

Owns the measuring; what the figures mean is the controller's to judge. Leaves no process and no file behind.
"""
