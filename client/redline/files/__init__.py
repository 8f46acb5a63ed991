"""Files that are written whole or not at all, and rows of files read in bounded memory. Standard library only."""
