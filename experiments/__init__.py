"""One folder a question: `python -m experiments.NAME` asks it again and writes the answer's numbers beside it."""
