"""Turns files into arrays: readers, tokenizers, vocabularies, batches and length buckets."""
