"""The optimizer, the train step, the epoch program, and the loop around them."""
