"""Replies of a trained model: responders, calibration, the retrieval baseline, text metrics."""
