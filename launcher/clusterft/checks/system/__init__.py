"""A node's own system: kernel, room on disk, what it does by itself."""
