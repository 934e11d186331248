"""How good a representation is: the fixed protocol, the watch for collapse, and the pictures."""
