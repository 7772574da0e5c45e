"""How weights move: optimizers, and the engines that spread them over the slots of a run."""
