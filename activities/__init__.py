"""One transaction or one outside call each, a module per noun."""
