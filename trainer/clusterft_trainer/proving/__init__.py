"""What `clusterft doctor --deep` runs on nodes, in the run's own image: collectives, cards at work, a checkpoint.

Owns the measuring; what the figures mean is the controller's to judge. Leaves no process and no file behind.
"""
