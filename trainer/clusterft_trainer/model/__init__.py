"""The SDXL model: its files, its parts, the one module that is trained, and the frozen encoders beside it."""
