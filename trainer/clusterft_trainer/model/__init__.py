"""The SDXL model: its files, its parts, the one module that is trained, and the frozen encoders beside it."""

from clusterft_trainer import imports

# Before any module in here names a class of diffusers or transformers.
imports.classes()
