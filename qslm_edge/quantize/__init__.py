"""Quantisation: levels and settings, packing, the quantisers, byte accounting, quantised weights for the model."""
