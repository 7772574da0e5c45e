"""One interface to a node: run a command, follow one. The only users of subprocess and of SSH."""

from clusterft.remote.protocol import Completed, Lines, Remote, Unreachable

__all__ = ["Completed", "Lines", "Remote", "Unreachable"]
