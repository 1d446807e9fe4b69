"""HTML: one page's frame, bars and tables, and crops of images."""
