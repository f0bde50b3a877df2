"""Inference with trained models: responders, calibration, retrieval baseline, text metrics."""
