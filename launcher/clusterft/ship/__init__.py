"""Act: the same bytes to all nodes, each sent once by the controller and passed on from node to node."""
