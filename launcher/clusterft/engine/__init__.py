"""Act: the Docker engine of one machine, through the way that `remote` holds open."""
