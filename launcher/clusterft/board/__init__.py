"""Events -> what is known right now, of a run (`state`) or of the nodes (`roster`), and what it came to. Pure."""

from clusterft.board.roster import Muster, Roster, Row, Standing
from clusterft.board.state import Board
from clusterft.board.verdict import Verdict, judge

__all__ = ["Board", "Muster", "Roster", "Row", "Standing", "Verdict", "judge"]
