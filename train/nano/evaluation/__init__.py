"""How well nano does: classifiers, rows of the table, a page to look at."""
