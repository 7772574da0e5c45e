"""Act: what every node needs besides an image: relay keys, pins, hostfile, and the way back."""
