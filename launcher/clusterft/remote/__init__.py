"""One interface to a node: run a command, follow one, talk with one. The only users of subprocess and of SSH."""

from clusterft.remote.protocol import Asker, Completed, Lines, Remote, Stream, Unreachable

__all__ = ["Asker", "Completed", "Lines", "Remote", "Stream", "Unreachable"]
