"""Every figure that the tutorials print, beside ours."""
