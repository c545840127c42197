"""Several runs, one after another: how they follow from each other, how each of them stands, and their processes."""
