"""Parts of `chaos.py`: a proxy that troubles a server, an evaluator that misbehaves, a driver, and the faults."""
