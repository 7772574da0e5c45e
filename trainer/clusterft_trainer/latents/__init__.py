"""The cache of latents and text states: shards, their catalogue, and the work of making them. Torch-free.

Owns everything under `latents/<recipe>/` and `text/<recipe>/` of the shared directory. Which pictures there are is
`corpus`'s to know; what encodes them is handed in.
"""
