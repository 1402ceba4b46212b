"""Halting on the device: samples leave their slots, others enter from a queue, and the batch shrinks at the end."""
