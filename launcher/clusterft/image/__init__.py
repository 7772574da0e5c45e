"""Act: the one image of a cluster: how it is made, that it works, what it is."""
