"""The SDXL trainer that runs inside every container. Importing the package imports nothing else.

Torch-free modules (`config`, `progress`, `assignment`) are shared with the launcher; all others belong to
the training process. The trainer never imports the launcher.
"""
