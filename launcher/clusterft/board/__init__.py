"""Events -> what is known about a run right now (`state`), and what it came to (`verdict`). Pure."""

from clusterft.board.state import Board
from clusterft.board.verdict import Verdict, judge

__all__ = ["Board", "Verdict", "judge"]
