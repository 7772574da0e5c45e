"""What a run will need and how fast it can go, told before a GPU is started, and the FLOPs behind MFU.

    devices      peak rates and memory of GPUs by their names
    blueprint    the model's modules, built without storage on the meta device, and which weights are trained
    meter        counts FLOPs and live bytes while such modules run
    flops        FLOPs of one sample for any bucket; what the training loop asks for MFU
    arithmetic   bytes in a slot, in a node and on disk; torch-free
    outline      how much of a model is trained, by settings alone: for what its checkpoints take; torch-free
    timing       seconds of a step; torch-free
    predict      settings and machines in, an Estimate out; text and JSON by report, the command line by command

Refuses to guess: a GPU that is not in the table has no peak, and a link whose rate is not given has no time.
"""
