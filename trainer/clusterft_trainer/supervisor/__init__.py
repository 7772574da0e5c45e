"""The torch-free process above a node's ranks: PID 1 of a container, or a detached process on a plain node.

It starts the launcher for its machine_rank, collects what every rank writes, forwards signals, and leaves no
process behind. It ends with the run; it is no daemon.
"""
