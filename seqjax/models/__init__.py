"""Classifier, tagger, seq2seq and text-to-text models."""
