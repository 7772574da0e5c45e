"""The shared dir: what was tried in it, whether all have the same one, NFS from both sides."""
