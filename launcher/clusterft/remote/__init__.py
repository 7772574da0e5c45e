"""One interface to a node: run a command, follow one, talk with one. The only users of subprocess and of SSH."""

from clusterft.remote.protocol import Asker, Completed, Lines, Remote, Stream, Unreachable
from clusterft.remote.unreachable import Broken, Partial

__all__ = ["Asker", "Broken", "Completed", "Lines", "Partial", "Remote", "Stream", "Unreachable"]
