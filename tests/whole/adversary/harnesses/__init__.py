"""A harness for each kind of input that may come from anyone: a function that uses bytes as that input, and judges."""
