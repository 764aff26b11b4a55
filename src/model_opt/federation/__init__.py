"""Moments, rows and envelopes: what is shared, how it joins, and how it looks as bytes."""
