"""Files of other tools, read as they are: no graph here, and no trust in what a file says."""
