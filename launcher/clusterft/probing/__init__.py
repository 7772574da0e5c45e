"""Doctor's active probes: programs on the nodes that talk with each other, bounded, and gone afterwards.

Each module asks one thing of all nodes and returns what was seen, as facts; judging it is for `checks`.
"""
