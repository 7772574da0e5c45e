"""The trainer's own settings: one typed, frozen tree that validates alike on the controller and in a container.

Torch-free. Owns names, types, defaults and combinations; refuses unknown keys and any setting that the code
would ignore. A value keeps its name from job.yaml to the optimizer.
"""

from clusterft_trainer.config.data import Buckets as Buckets
from clusterft_trainer.config.data import Cache as Cache
from clusterft_trainer.config.data import Captions as Captions
from clusterft_trainer.config.data import Data as Data
from clusterft_trainer.config.data import Problems as Problems
from clusterft_trainer.config.data import Warmup as Warmup
from clusterft_trainer.config.learn import Ema as Ema
from clusterft_trainer.config.learn import Learn as Learn
from clusterft_trainer.config.learn import Lora as Lora
from clusterft_trainer.config.learn import Optimizer as Optimizer
from clusterft_trainer.config.learn import Part as Part
from clusterft_trainer.config.learn import PartName as PartName
from clusterft_trainer.config.learn import UnetPart as UnetPart
from clusterft_trainer.config.objective import Objective as Objective
from clusterft_trainer.config.objective import Timesteps as Timesteps
from clusterft_trainer.config.refusals import without_gpu as without_gpu
from clusterft_trainer.config.run import Batch as Batch
from clusterft_trainer.config.run import Checkpoints as Checkpoints
from clusterft_trainer.config.run import Compute as Compute
from clusterft_trainer.config.run import Ddp as Ddp
from clusterft_trainer.config.run import Fsdp as Fsdp
from clusterft_trainer.config.run import HeldOut as HeldOut
from clusterft_trainer.config.run import Output as Output
from clusterft_trainer.config.run import Samples as Samples
from clusterft_trainer.config.run import Wandb as Wandb
from clusterft_trainer.config.run import Zero as Zero
from clusterft_trainer.config.sources import PICTURES as PICTURES
from clusterft_trainer.config.sources import TABLES as TABLES
from clusterft_trainer.config.sources import BuiltinSource as BuiltinSource
from clusterft_trainer.config.sources import Columns as Columns
from clusterft_trainer.config.sources import FolderSource as FolderSource
from clusterft_trainer.config.sources import KohyaSource as KohyaSource
from clusterft_trainer.config.sources import Source as Source
from clusterft_trainer.config.sources import TableSource as TableSource
from clusterft_trainer.config.sources import TaggedSource as TaggedSource
from clusterft_trainer.config.sources import TagRules as TagRules
from clusterft_trainer.config.sources import TarSource as TarSource
from clusterft_trainer.config.sources import locations as locations
from clusterft_trainer.config.tree import TrainConfig as TrainConfig
from clusterft_trainer.config.tree import load as load
