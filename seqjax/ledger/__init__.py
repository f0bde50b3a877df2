"""Every figure that the tutorials print beside ours: what `experiments/reproduce.py` runs."""
