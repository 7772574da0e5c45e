"""`prep`: a data set made ready for training by any number of workers, at any time, on any node.

Owns the command, the order of its stages and what it tells. Imports torch only for a stage that encodes.
"""
