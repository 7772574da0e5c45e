"""Events -> what is known right now, of a run (`state`) or of the nodes (`roster`), and what it came to. Pure."""

from clusterft.board.attempt import Attempt
from clusterft.board.evidence import Verdict
from clusterft.board.roster import Muster, Roster, Row, Standing
from clusterft.board.state import Board, Remarkable
from clusterft.board.verdict import MENDED_FIRST, judge

__all__ = [
    "MENDED_FIRST",
    "Attempt",
    "Board",
    "Muster",
    "Remarkable",
    "Roster",
    "Row",
    "Standing",
    "Verdict",
    "judge",
]
