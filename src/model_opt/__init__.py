"""Finds the best way to compress a neural network, measures it on your device, and learns across machines."""

__version__ = "0.1.0"
