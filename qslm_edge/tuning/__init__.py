"""Quantisation-aware tuning: weights moved on their packed grid until the model answers like the float teacher."""
