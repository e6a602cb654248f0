"""Checkpoints as pipelines of diffusers: a folder of weights, and of the modules of this code that they run by."""
