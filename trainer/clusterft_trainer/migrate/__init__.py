"""A kohya command line, TOML or accelerate config -> a job of ours, and every flag that does not come along.

Torch-free, and pure but for what reads the files beside it. Owns the vocabulary of the others (`known`), how their
files are read (`shell`, `command`, `tables`), the rules from their settings to ours (`what`, `learning`,
`optimizers`, `aim`, `course`, `machine`, `sources`, `cache`, `conflicts`) and the page that comes out. Refuses to
drop a flag silently, to write a secret, and to write a job that our own validation would refuse.
"""

from clusterft_trainer.migrate.found import Migration as Migration
from clusterft_trainer.migrate.found import Unmatched as Unmatched
from clusterft_trainer.migrate.here import AtHand as AtHand
from clusterft_trainer.migrate.here import Beside as Beside
from clusterft_trainer.migrate.page import report as report
from clusterft_trainer.migrate.rules import run as run
