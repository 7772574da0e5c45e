"""Docker on a node: containers of ours, a container of the image, the image itself."""
