"""Files to arrays: readers, tokenizers, vocabularies, batches and length buckets."""
