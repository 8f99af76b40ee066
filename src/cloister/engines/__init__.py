"""Inference engines behind one port, and the optimisation of models at pack time."""
